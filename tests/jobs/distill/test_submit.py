"""`ray job submit` and `ray job stop` against the head node of a cluster, as a person would use them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT, checksums, environment

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.pipeline.prepare import check_storage

BIN = Path(sys.executable).parent
JOB = ["--working-dir", ".", "--", "python", "jobs/distill.py"]


@pytest.fixture
def ray_job(cluster_environment):
    """`ray job …`: gives its exit code and all that it said."""

    def call(*words):
        env = {k: v for k, v in (environment() | cluster_environment).items() if k != "RAY_ADDRESS"}
        options = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": 600}
        done = subprocess.run([BIN / "ray", "job", *map(str, words)], **options)
        return done.returncode, done.stdout + done.stderr

    return call


def events(storage):
    """(event, its stage or None), of the lines of the only run's log."""
    lines = [
        json.loads(line) for log in storage.glob("runs/*/log.jsonl") for line in log.read_text().splitlines()
    ]
    return [(line["event"], line.get("stage")) for line in lines]


def seen(predicate, seconds=240):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if predicate():
            return True
        time.sleep(0.2)
    return False


def test_a_submitted_job_that_was_stopped_goes_on_when_it_is_submitted_again(
    finished_run, ray_job, tiny_overrides, tmp_path
):
    storage = tmp_path / "submitted"
    words = [*JOB, *tiny_overrides, f"storage={storage}"]
    code, said = ray_job("submit", "--no-wait", "--submission-id", f"stopped-{tmp_path.name}", *words)
    assert code == 0, said
    assert seen(lambda: ("stage started", "finetune") in events(storage)), events(storage)
    code, said = ray_job("stop", f"stopped-{tmp_path.name}")
    assert code == 0 and "was stopped" in said, said
    assert events(storage)[-1] == ("run stopped", None)
    code, said = ray_job("submit", *words)
    assert code == 0, said[-3000:]
    assert checksums(storage) == checksums(Path(finished_run[1].distilled).parents[1]) != []
    assert events(storage).count(("stage started", "encode")) == 1


def test_a_submitted_job_refuses_a_relative_storage(tiny_overrides, monkeypatch):
    """Its working directory is temporary. `ray job submit` sets this variable for the driver."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    config = load_config("digits", parse_overrides([*tiny_overrides, "storage=./runs"]))
    with pytest.raises(InputError, match=r"storage: '\./runs' is relative"):
        check_storage(config)
