"""`ray job submit` and `ray job stop` on the cluster of cluster/README.md."""

import contextlib
import json
import re
import shlex
import subprocess
import tempfile
import time

import pytest
from planned import config_of
from processes import ROOT, checksums, environment
from raylets import RAY, free_port, node, own_address

from ims3_ray.errors import InputError
from ims3_ray.pipeline.inputs import check_storage
from ims3_ray.runs.mlflow_tracker import client, experiment_id
from ims3_ray.runs.tags import SUBMISSION
from ims3_ray.storage.artifacts import open_directory

JOB = ["--working-dir", ".", "--", "python", "jobs/distill.py"]
SEEN_S = 240


@pytest.fixture
def ray_job(tmp_path):
    """Run `ray job …` on two nodes that the printed lines start; returns its exit code and output."""
    port, board = free_port(), free_port()
    (tmp_path / "home").mkdir()
    env = environment() | {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
    env["PATH"] = f"{RAY.parent}:{env['PATH']}"  # submitted jobs run the head's python

    def call(*words):
        options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 600}
        options["env"] = env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{board}"}
        until = time.monotonic() + SEEN_S
        while True:
            done = subprocess.run([RAY, "job", *words], **options)
            output = done.stdout + done.stderr
            # a head takes jobs once its agent is registered, which is after `ray start` says that it runs
            if "No available agent to submit job" not in output or time.monotonic() > until:
                return done.returncode, output

    block = re.search(r"```bash\n(.*?)```", (ROOT / "cluster/README.md").read_text(), re.DOTALL)[1]
    mode, token, *starts = block.replace("HEAD:6379", f"{own_address()}:{port}").splitlines()
    assert shlex.split(mode, comments=True) == ["export", "RAY_AUTH_MODE=token"]
    subprocess.run(["bash", "-ec", token], env=env, check=True)
    assert (tmp_path / "home/.ray/auth_token").stat().st_mode & 0o077 == 0
    # the usual ports may be taken
    own = [["--num-cpus=1", f"--port={port}", f"--dashboard-port={board}"], ["--num-cpus=2"]]
    with contextlib.ExitStack() as nodes:
        # else one node's agent unpacks the job's sources where the other's driver reads
        folder = nodes.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        own[1].append(f"--temp-dir={folder}")
        for number, (line, words) in enumerate(zip(starts, own, strict=True)):
            ray, start, *printed = shlex.split(line, comments=True)
            assert (ray, start) == ("ray", "start")
            agent = f"--dashboard-agent-listen-port={free_port()}"
            log = tmp_path / f"node-{number}.log"
            nodes.enter_context(node(*printed, *words, agent, env=env, log=log))
        yield call


def events(storage):
    """(event, its stage or None), of the lines of the only run's log."""
    lines = [line for log in storage.glob("runs/*/log.jsonl") for line in log.read_text().splitlines()]
    return [(line["event"], line.get("stage")) for line in map(json.loads, lines)]


@pytest.mark.chaos
def test_a_stopped_job_resumes_when_submitted_again(finished_images, ray_job, tiny_overrides, tmp_path):
    storage, words = tmp_path / "runs", [*JOB, *tiny_overrides]
    code, output = ray_job("submit", "--no-wait", "--submission-id", "stopped", *words)
    assert code == 0, output
    until = time.monotonic() + SEEN_S
    while ("stage started", "finetune") not in events(storage):
        assert time.monotonic() < until, ray_job("status", "stopped") + ray_job("logs", "stopped")
        time.sleep(0.2)
    code, output = ray_job("stop", "stopped")
    assert (code, "was stopped" in output) == (0, True), output
    assert events(storage)[-1] == ("run stopped", None)
    code, output = ray_job("submit", *words)
    assert code == 0, output[-3000:]
    assert checksums(storage) == finished_images
    assert events(storage).count(("stage started", "encode")) == 1
    kept = open_directory(str(storage))
    (run,) = client(kept).search_runs([experiment_id(client(kept), kept)])
    assert run.data.tags[SUBMISSION] in output  # the job that went on with it


def test_a_submitted_job_rejects_a_relative_storage(tiny_overrides, monkeypatch):
    """Its working directory is temporary. `ray job submit` sets this variable for the driver."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    config = config_of(tiny_overrides, "storage=./runs")
    with pytest.raises(InputError, match=r"storage: '\./runs' is relative"):
        check_storage(config)
