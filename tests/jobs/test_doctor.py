"""What is said of a machine: whether a run could work, and what to do where not; nothing is left behind."""

import http.server
import os
import socket
import subprocess
import sys
import threading

import pytest
from processes import environment

from ims3_ray.cli import main
from ims3_ray.jobs import doctor


@pytest.fixture
def server():
    """The address of somebody who answers that there is nothing."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as served:
        served.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def nobody():
    """HOST:PORT at which nobody answers."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys, server):
    """Asks from an empty folder; gives the exit code, {what: (state, detail)} and what is an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    # however small this machine is
    for least in ("LEAST_MEMORY", "LEAST_SHM", "LEAST_DISK"):
        monkeypatch.setattr(doctor, least, 0.0)

    def asked(*words):
        capsys.readouterr()
        code = main(["doctor", *words])
        out, err = capsys.readouterr()
        lines = [line.split(maxsplit=2) for line in out.splitlines()]
        return code, {what: (state, detail) for what, state, detail in lines}, err

    return asked


def test_on_a_machine_that_works_every_line_says_so_and_nothing_is_left(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of-mine-alone")
    code, said, err = ask()
    assert (code, err) == (0, "")
    assert {what for what, (state, _) in said.items() if state != doctor.OK} <= {"GPU", "cluster"}, said
    assert f"free for {tmp_path}/runs" in said["storage"][1]
    assert "with a token" in said["hub"][1]
    assert "hf_of-mine-alone" not in str(said)
    assert "digits" in said["recipes"][1]
    assert list(tmp_path.iterdir()) == []


def test_what_keeps_a_run_from_working_is_told_with_its_remedy(ask, nobody, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{nobody}")
    (tmp_path / "file").touch()
    code, said, err = ask("storage=file/runs")
    assert (code, err.count("\n")) == (2, 1)
    assert {what for what, (state, _) in said.items() if state == doctor.MISSING} == {
        "storage",
        "MLflow",
        "cluster",
    }
    assert "storage, MLflow, cluster" in err
    for what, remedy in (
        ("storage", "storage=DIR"),
        ("MLflow", "MLFLOW_TRACKING_URI"),
        ("cluster", "ray start"),
    ):
        assert remedy in said[what][1]
    assert "secret" not in str(said)


@pytest.mark.parametrize(
    ("least", "what"), [("LEAST_MEMORY", "memory"), ("LEAST_SHM", "/dev/shm"), ("LEAST_DISK", "storage")]
)
def test_what_is_too_small_for_a_run_is_told(ask, monkeypatch, least, what):
    monkeypatch.setattr(doctor, least, 1e18)
    code, said, err = ask()
    assert (code, said[what][0]) == (2, doctor.MISSING)
    assert what in err


@pytest.mark.parametrize("address", ["head:99999", "ray://[::1", "nonsense"])
def test_an_address_that_is_none_is_a_line_too(ask, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    code, said, _ = ask()
    assert (code, said["cluster"][0]) == (2, doctor.MISSING)


def test_without_the_hub_a_run_works(ask, nobody, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://{nobody}")
    code, said, _ = ask()
    assert (code, said["hub"][0]) == (0, doctor.NONE)
    assert "HF_ENDPOINT" in said["hub"][1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_storage_that_can_t_be_written_is_told(ask, tmp_path):
    tmp_path.chmod(0o500)
    assert ask()[1]["storage"][0] == doctor.MISSING
    tmp_path.chmod(0o700)


def test_a_gpu_is_told_by_its_memory_and_whether_it_has_bf16(ask, tmp_path, monkeypatch):
    """By what NVIDIA's driver prints, from a program in its place."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 9.0'\necho 'Tesla T4, 15360, 7.5'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(doctor, "version", lambda name: "2.13.0+cu130")
    _, said, _ = ask()
    assert said["GPU"][0] == doctor.OK
    assert "NVIDIA H100 80GB HBM3 85.5 GB bf16, Tesla T4 16.1 GB no bf16" in said["GPU"][1]
    assert "imagewoof" in said["recipes"][1]
    monkeypatch.setattr(doctor, "version", lambda name: "2.13.0+cpu")
    _, said, _ = ask()
    assert said["GPU"][0] == doctor.NONE
    assert "imagewoof" not in said["recipes"][1]


def test_it_imports_neither_torch_nor_ray(tmp_path):
    look = "import sys; from ims3_ray.cli import main; main(['doctor'])"
    look += "; print({'torch', 'ray'} & {*sys.modules})"
    told = environment() | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, cwd=tmp_path, env=told
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
