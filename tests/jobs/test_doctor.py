"""`ims3 doctor`: each check's state and remedy, the table of recipes; nothing is written or left running."""

import http.server
import os
import re
import socket
import threading

import pytest
import torch
from processes import environment, python

from ims3_ray.cli import main
from ims3_ray.config.load import load_config, recipe_names
from ims3_ray.jobs import doctor


@pytest.fixture
def server():
    """URL of a server that answers every request with an error status."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as served:
        served.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def silent_address():
    """HOST:PORT that accepts no connection."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys, server):
    """examine(*words) → exit code, {check: (state, detail)}, {recipe: its lines}, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for minimum in ("MIN_MEMORY", "MIN_SHM", "MIN_DISK"):  # for small test machines
        monkeypatch.setattr(doctor, minimum, 0.0)

    def examine(*words):
        capsys.readouterr()
        code = main(["doctor", *words])
        out, err = capsys.readouterr()
        checks, _, table = out.partition("\n\n")
        lines = [line.split(maxsplit=2) for line in checks.splitlines()]
        recipes = dict(re.findall(r"^(\S+) +(.*\n(?: {4}.*\n)+)", table, re.MULTILINE))
        return code, {name: (state, detail) for name, state, detail in lines}, recipes, err

    return examine


def test_a_working_machine_passes_all_checks_and_nothing_is_written(examine, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of-mine-alone")
    code, checks, recipes, err = examine()
    assert (code, err) == (0, "")
    assert {name for name, (state, _) in checks.items() if state != doctor.OK} <= {"GPU", "cluster"}, checks
    assert f"free for {tmp_path}/runs" in checks["storage"][1]
    assert "with a token" in checks["hub"][1]
    assert "hf_of-mine-alone" not in str(checks)
    assert list(recipes) == recipe_names()
    assert list(tmp_path.iterdir()) == []


def test_failed_checks_name_their_remedies(examine, silent_address, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", silent_address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{silent_address}")
    (tmp_path / "file").touch()
    code, checks, _, err = examine("storage=file/runs")
    assert (code, err.count("\n")) == (2, 1)
    remedies = {"storage": "storage=DIR", "MLflow": "MLFLOW_TRACKING_URI", "cluster": "ray start"}
    assert {name for name, (state, _) in checks.items() if state == doctor.MISSING} == set(remedies)
    assert ", ".join(remedies) in err
    assert all(remedy in checks[name][1] for name, remedy in remedies.items())
    assert "secret" not in str(checks)


@pytest.mark.parametrize(
    ("minimum", "name"), [("MIN_MEMORY", "memory"), ("MIN_SHM", "/dev/shm"), ("MIN_DISK", "storage")]
)
def test_too_little_memory_or_disk_fails(examine, monkeypatch, minimum, name):
    monkeypatch.setattr(doctor, minimum, 1e18)
    code, checks, _, err = examine()
    assert (code, checks[name][0]) == (2, doctor.MISSING)
    assert name in err


@pytest.mark.parametrize("address", ["head:99999", "ray://[::1", "nonsense"])
def test_an_invalid_address_fails_the_check_of_the_cluster(examine, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    code, checks, _, _ = examine()
    assert (code, checks["cluster"][0]) == (2, doctor.MISSING)


def test_a_run_needs_no_hub(examine, silent_address, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://{silent_address}")
    code, checks, _, _ = examine()
    assert (code, checks["hub"][0]) == (0, doctor.NONE)
    assert "HF_ENDPOINT" in checks["hub"][1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_a_storage_without_write_permission_fails(examine, tmp_path):
    tmp_path.chmod(0o500)
    assert examine()[1]["storage"][0] == doctor.MISSING
    tmp_path.chmod(0o700)


def test_gpus_are_listed_with_memory_and_bf16_and_decide_which_recipes_fit(examine, tmp_path, monkeypatch):
    """A program in the place of nvidia-smi prints what NVIDIA's driver does."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    topology = "[ $1 = topo ] && printf 'GPU0 X NV4\\nGPU1 NV4 X\\n' && exit\n"
    driver = "580.95.05"
    rows = f"NVIDIA H100 80GB HBM3, 81559, 9.0, {driver}", f"Tesla T4, 15360, 7.5, {driver}"
    gpus = "".join(f"echo '{row}'\n" for row in rows)
    program.write_text(f"#!/bin/sh\n{topology}{gpus}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: "13.0")
    _, checks, recipes, _ = examine()
    assert checks["GPU"][0] == doctor.OK
    assert "NVIDIA H100 80GB HBM3 85.5 GB bf16, Tesla T4 16.1 GB no bf16" in checks["GPU"][1]
    assert checks["GPU"][1].partition("; ")[2].startswith(f"NVLink; driver {driver}; CUDA 13.0; ")
    assert "fits this machine" in recipes["imagewoof"]
    program.write_text(f"#!/bin/sh\n{gpus.replace(driver, '550.54')}")
    for cuda, reason in (("13.0", "550.54, torch's CUDA 13.0 needs 580"), (None, "without CUDA")):
        monkeypatch.setattr(doctor, "_torch_cuda", lambda cuda=cuda: cuda)
        _, checks, recipes, _ = examine()
        assert checks["GPU"][0] == doctor.NONE
        assert reason in checks["GPU"][1]
        assert "--torch-backend auto" in checks["GPU"][1]
        assert "needs a GPU" in recipes["imagewoof"]
        assert "fits this machine" in recipes["digits"]
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: "12.8")
    assert "no NVLink; driver 550.54" in examine()[1]["GPU"][1]


def test_the_cuda_version_of_torch_is_read_without_importing_it():
    assert doctor._torch_cuda() == torch.version.cuda


def test_every_recipe_is_listed_with_time_model_protocol_and_a_sentence():
    lines = "\n".join([*doctor.recipe_table(False, 64e9), ""])
    assert max(map(len, lines.splitlines())) <= doctor.WIDTH
    recipes = dict(re.findall(r"^(\S+) +(.*\n(?: {4}.*\n)+)", lines, re.MULTILINE))
    for name in recipe_names():
        config = load_config(name)
        assert f"{config.model.path}; protocol {config.evaluate.protocol}" in recipes[name]
        first, *_, last = recipes[name].splitlines()
        assert re.search(r"time: (\d+ s|not yet measured)$", first), first
        assert last.endswith(".")
    assert "digits               needs 6 GB of memory; " in "\n".join(doctor.recipe_table(False, 5e9))


def test_a_shown_recipe_can_be_loaded_and_an_unknown_one_is_refused_with_the_names(tmp_path, output, refused):
    path = tmp_path / "imagewoof.yaml"
    path.write_text(output("doctor", "--show", "imagewoof"))
    assert load_config(str(path)) == load_config("imagewoof")
    assert "imagewoof" in refused("doctor", "--show", "imagewolf")


def test_it_imports_neither_torch_nor_ray(tmp_path):
    script = "import sys; from ims3_ray.cli import main; main(['doctor'])"
    script += "; print({'torch', 'ray'} & {*sys.modules})"
    done = python(script, cwd=tmp_path, env=environment() | {"HF_HUB_OFFLINE": "1"})
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
