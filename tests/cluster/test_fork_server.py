"""Workers forked from a preloaded process, and the fallback without it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import python

from ims3_ray.cluster import fork_server

SCRIPT = """
import os, sys, ray
from ims3_ray.cluster import resources, fork_server
resources.connect()

@ray.remote(num_cpus=0.1)
def look():
    return "torch" in sys.modules, os.environ["OMP_NUM_THREADS"]

print(ray.get(look.remote()), fork_server._started[0][1].pid, fork_server._started[0][0])
"""


@pytest.mark.chaos
def test_a_local_worker_starts_with_torch_and_the_server_ends_with_the_driver():
    done = python(SCRIPT, timeout=120)
    assert done.returncode == 0, done.stderr
    looked, (pid, address) = done.stdout.split(") ")[0], done.stdout.split(") ")[1].split()
    assert looked == "(True, '1'"
    until = time.monotonic() + 30
    while psutil.pid_exists(int(pid)) or Path(address).parent.exists():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_client_that_is_refused_becomes_the_worker(tmp_path):
    address = tmp_path / "workers"
    with fork_server._socket() as listener:
        listener.bind(str(address))
        listener.listen()
        words = [sys.executable, "-S", "-E", fork_server.__file__, address, sys.executable]
        client = subprocess.Popen([*words, "-c", "print('begun')"], stdout=subprocess.PIPE, text=True)
        connection, _ = listener.accept()
        with connection:
            connection.recv(2**20)
            connection.send(fork_server.REFUSED)
        assert client.communicate(timeout=60)[0] == "begun\n"


def test_no_server_runs_beside_a_gpu_or_if_it_is_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr(fork_server, "_started", [])
    monkeypatch.setattr(fork_server.subprocess, "Popen", None)
    monkeypatch.setattr(fork_server, "NVIDIA_DRIVER", str(tmp_path))
    assert fork_server.start() == sys.executable
    monkeypatch.setattr(fork_server, "NVIDIA_DRIVER", str(tmp_path / "none"))
    monkeypatch.setenv("IMS3_FORK_WORKERS", "0")
    assert fork_server.start() == sys.executable


def test_without_a_server_the_client_becomes_the_worker(tmp_path):
    words = [sys.executable, "-S", "-E", fork_server.__file__, tmp_path / "nobody", sys.executable]
    done = subprocess.run([*words, "-c", "print('begun')"], capture_output=True, text=True, check=True)
    assert done.stdout == "begun\n"
