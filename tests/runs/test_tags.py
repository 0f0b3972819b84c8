"""Tags with the origin of a run: commit, command line and Ray job, without secrets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ims3_ray.runs.tags import COMMAND, RAY_JOB, SUBMISSION, commit_tags, provenance_tags

COMMIT, DIRTY = "mlflow.source.git.commit", "mlflow.source.git.dirty"


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit, which tracks `package` but not `installed`; and the commit."""

    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    for name in ("package", "installed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text("1")
    git("add", "package")
    git("commit", "-qm", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_commit_and_changed_files_of_the_code_are_recorded(repository):
    root, head = repository
    assert commit_tags(root / "package") == {COMMIT: head, DIRTY: "false"}
    (root / "package" / "code.py").write_text("2")
    assert commit_tags(root / "package") == {COMMIT: head, DIRTY: "true"}


def test_an_untracked_package_has_no_commit(repository):
    assert commit_tags(repository[0] / "installed") == {}
    assert commit_tags(Path("/")) == {}


def test_command_line_and_job_are_recorded_without_secrets(monkeypatch):
    words = ["python", "jobs/distill.py", "storage=s3://me:hunter22@host/runs", "data.train=/my images"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setenv(RAY_JOB, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({COMMIT: "abc"}))
    tags = provenance_tags.__wrapped__()
    assert tags[COMMAND] == "python jobs/distill.py storage=s3://***@host/runs 'data.train=/my images'"
    assert (tags[SUBMISSION], tags["mlflow.source.type"], tags[COMMIT]) == ("raysubmit_1", "JOB", "abc")
    assert tags["mlflow.user"]
    monkeypatch.delenv(RAY_JOB)
    tags = provenance_tags.__wrapped__()
    assert tags["mlflow.source.type"] == "LOCAL"
    assert SUBMISSION not in tags
