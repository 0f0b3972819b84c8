"""`ray job submit` against the head node of a cluster, as a person would do it."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_jobs import ROOT, checksums, environment

from ims3_ray.errors import InputError
from ims3_ray.overrides import load_config, parse_overrides
from ims3_ray.preparation import check_storage

BIN = Path(sys.executable).parent


def test_a_submitted_job_gives_the_same_distilled_set(finished_run, cluster_environment, tiny_overrides, tmp_path):
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/distill.py"]
    words = [*tiny_overrides, f"storage={tmp_path / 'submitted'}"]
    env = {k: v for k, v in (environment() | cluster_environment).items() if k != "RAY_ADDRESS"}
    submitted = subprocess.run([*command, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    assert checksums(tmp_path / "submitted") == checksums(Path(finished_run[1].distilled).parents[1]) != []


def test_a_submitted_job_refuses_a_relative_storage(tiny_overrides, monkeypatch):
    """Its working directory is temporary. `ray job submit` sets this variable for the driver."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    config = load_config("digits", parse_overrides([*tiny_overrides, "storage=./runs"]))
    with pytest.raises(InputError, match=r"storage: '\./runs' is relative"):
        check_storage(config)
