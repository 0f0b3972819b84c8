"""`ray job submit` against a head node of its own, as on a cluster."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from test_jobs import ROOT, checksums, environment

from ims3_ray.errors import InputError
from ims3_ray.overrides import load_config, parse_overrides
from ims3_ray.preparation import check_storage

BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def head(tmp_path):
    """A head node on loopback; gives the environment of its clients. Its processes, and no others, are ended."""
    dashboard = free_port()
    token = tmp_path / "token"
    token.write_text("0" * 64)
    env = environment() | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    words = [f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=5"]
    words += [f"--dashboard-agent-listen-port={free_port()}"]  # the session's cluster has the usual one
    process = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", *words],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        request = urllib.request.Request(
            f"http://127.0.0.1:{dashboard}/api/version", headers={"Authorization": f"Bearer {'0' * 64}"}
        )
        try:
            urllib.request.urlopen(request, timeout=5)
            break
        except OSError:
            time.sleep(1)
    else:
        pytest.fail("the head node did not come up")
    yield env
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


def submit(env, *words):
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/distill.py", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_submitted_job_gives_the_same_distilled_set(finished_run, head, tiny_overrides, tmp_path):
    submitted = submit(head, *tiny_overrides, f"storage={tmp_path / 'submitted'}")
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    assert checksums(tmp_path / "submitted") == checksums(Path(finished_run[1].distilled).parents[1]) != []


def test_a_submitted_job_refuses_a_relative_storage(tiny_overrides, monkeypatch):
    """Its working directory is temporary. `ray job submit` sets this variable for the driver."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    config = load_config("digits", parse_overrides([*tiny_overrides, "storage=./runs"]))
    with pytest.raises(InputError, match=r"storage: '\./runs' is relative"):
        check_storage(config)
