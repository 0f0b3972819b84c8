"""What a run's record says of who started it: the code's commit, the words, the job; and no secret."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ims3_ray.runs import provenance as origins
from ims3_ray.runs.provenance import COMMAND, SUBMISSION, commit, provenance_tags

COMMIT, DIRTY = "mlflow.source.git.commit", "mlflow.source.git.dirty"


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit that follows `package` and no other folder."""

    def git(*words):
        told = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", "-C", str(tmp_path), *told, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    for name in ("package", "installed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text("1")
    git("add", "package")
    git("commit", "-qm", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_the_commit_is_the_codes_own_and_changed_files_are_told(repository):
    root, head = repository
    assert commit(root / "package") == {COMMIT: head, DIRTY: "false"}
    (root / "package" / "code.py").write_text("2")
    assert commit(root / "package") == {COMMIT: head, DIRTY: "true"}


def test_a_package_that_its_repository_does_not_follow_has_no_commit(repository):
    assert commit(repository[0] / "installed") == {}
    assert commit(Path("/")) == {}


def test_words_and_job_are_told_without_their_secrets(monkeypatch):
    words = ["python", "jobs/distill.py", "storage=s3://me:hunter22@host/runs", "data.train=/my images"]
    monkeypatch.setattr(sys, "orig_argv", words)
    job = {"metadata": {"job_submission_id": "raysubmit_1", "job_name": "x"}}
    monkeypatch.setenv(origins.RAY_JOB, json.dumps(job))
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({COMMIT: "abc"}))
    found = provenance_tags.__wrapped__()
    assert found[COMMAND] == "python jobs/distill.py storage=s3://***@host/runs 'data.train=/my images'"
    assert (found[SUBMISSION], found["mlflow.source.type"]) == ("raysubmit_1", "JOB")
    assert found[COMMIT] == "abc"
    assert found["mlflow.user"]
    monkeypatch.delenv(origins.RAY_JOB)
    assert provenance_tags.__wrapped__()["mlflow.source.type"] == "LOCAL"
    assert SUBMISSION not in provenance_tags.__wrapped__()
