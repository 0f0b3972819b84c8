"""Who started a run, with what code and which words, as MLflow tags: its own, Ray's job, the command line."""

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ims3_ray.display import redact

MAX_TAG = 5000  # characters that every MLflow store takes
COMMAND, SUBMISSION = "command", "ray.submission_id"
RAY_JOB, SUBMISSION_ID = (
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "job_submission_id",
)  # as `ray job submit` tells a driver


@functools.cache  # a sweep asks for every trial
def provenance_tags() -> dict[str, str]:
    """User, source, commit, command line, and the submission id of Ray's job where one is at work.

    MLflow's variable MLFLOW_RUN_CONTEXT has the last word: a job's copy of the code holds no commit.
    """
    from mlflow.tracking.context.git_context import GitRunContext
    from mlflow.tracking.context.registry import resolve_tags

    metadata = json.loads(os.environ.get(RAY_JOB, "{}")).get("metadata") or {}
    job = (
        {SUBMISSION: metadata[SUBMISSION_ID], "mlflow.source.type": "JOB"}
        if SUBMISSION_ID in metadata
        else {}
    )
    others: Any = [
        GitRunContext
    ]  # the commit of whatever repository the script lies in, an environment's too
    known = commit(Path(__file__).parent) | resolve_tags(tags=job, ignore=others)
    tags = {COMMAND: redact(shlex.join(sys.orig_argv)), **known}
    return {name: value[:MAX_TAG] for name, value in tags.items()}


def commit(folder: Path) -> dict[str, str]:
    """The commit that `folder` is checked out at, and whether files differ; empty where no repository has it.

    An installed package may lie within another's repository, which does not follow its files.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "mlflow.source.git.dirty": str(bool(changed)).lower(),
        }
    except (OSError, subprocess.SubprocessError):
        return {}
