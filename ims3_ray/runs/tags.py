"""MLflow tags of a run: its kind, environment, artefacts and origin; and the names of its metrics."""

import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ims3_ray.display import redact
from ims3_ray.storage.artifacts import fingerprint

if TYPE_CHECKING:
    from ims3_ray.stages.context import Context

RUN = "ims3.run"  # the run's key
KIND, PROTOCOL, SCORED = "kind", "protocol", "scored"  # the protocol's label, the scored images' fingerprint
PARENT = "mlflow.parentRunId"  # MLflow nests runs by it
SWEEP_KEY, TRIAL_NUMBER, ERROR = "sweep", "trial", "error"  # of a trial
DISTILLATION, SWEEP, TRIAL = KINDS = ("distillation", "sweep", "trial")
SPACE, OBJECTIVE = "space.", "objective"  # parameters of a sweep: prefix of a swept field; metrics by commas
OBJECTIVES = {"accuracy": "accuracy"} | {  # objective → metric of a run
    name: f"{name}/distilled"
    for name in ("coverage", "low_density_coverage", "density", "precision", "recall", "vendi")
}
ENVIRONMENT = ("version.", "hardware.")  # prefixes of tags
COMMAND, SUBMISSION = "command", "ray.submission_id"
RAY_JOB, SUBMISSION_ID = "RAY_JOB_CONFIG_JSON_ENV_VAR", "job_submission_id"  # set by `ray job submit`
MAX_TAG, MAX_PARAM = 5000, 500  # characters; every MLflow store accepts this many


def run_tags(context: "Context") -> dict[str, str]:
    """Return kind, versions, hardware, and the protocol and images that the accuracy is measured with."""
    from ims3_ray.cluster.environment import hardware, versions  # imports Ray, which queries do without
    from ims3_ray.evaluation.protocols import get_protocols

    config = context.config
    tags = {KIND: DISTILLATION} | {f"version.{name}": text for name, text in versions().items()}
    tags |= {f"hardware.{name}": str(value) for name, value in hardware(context.machine).items()}
    if "scored" in context.inputs:
        protocol = get_protocols(config.evaluate.protocol, config.evaluate.networks)[0]
        tags |= {PROTOCOL: protocol.label, SCORED: context.inputs["scored"]}
    return tags


def artifact_tags(artifacts: Iterable[str]) -> dict[str, str]:
    """Return `{"artifact.selection": "ab12"}` for `["selection/ab12"]`: runs are found by their artefacts."""
    return {f"artifact.{noun}": name for noun, name in (artifact.split("/") for artifact in artifacts)}


def prefix_metrics(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Prefix metrics by their stage (`encode/seconds`), except the results of the evaluation."""
    is_result = stage == "evaluate" and "accuracy" in metrics
    return dict(metrics) if is_result else {f"{stage}/{name}": value for name, value in metrics.items()}


def param_text(value: object) -> str:
    """The value as MLflow keeps it: a long one cut, with a fingerprint of the whole."""
    return text if len(text := str(value)) <= MAX_PARAM else f"{text[: MAX_PARAM - 15]}… #{fingerprint(text)}"


@functools.cache  # a sweep asks for each trial
def provenance_tags() -> dict[str, str]:
    """Return user, source, commit, command line, and the submission id of a Ray job.

    Tags in MLflow's variable MLFLOW_RUN_CONTEXT override them: a submitted job's copy of the code has no
    commit.
    """
    from mlflow.tracking.context.git_context import GitRunContext
    from mlflow.tracking.context.registry import resolve_tags

    metadata = json.loads(os.environ.get(RAY_JOB, "{}")).get("metadata") or {}
    job = {}
    if SUBMISSION_ID in metadata:
        job = {SUBMISSION: metadata[SUBMISSION_ID], "mlflow.source.type": "JOB"}
    # MLflow's own would give the commit of the repository around the script
    ignored: Any = [GitRunContext]
    tags = {COMMAND: redact(shlex.join(sys.orig_argv))}
    tags |= commit_tags(Path(__file__).parent) | resolve_tags(tags=job, ignore=ignored)
    return {name: value[:MAX_TAG] for name, value in tags.items()}


def commit_tags(folder: Path) -> dict[str, str]:
    """Return the commit of `folder` and whether files differ from it; {} if no repository tracks `folder`.

    An installed package may lie within another repository, which does not track its files.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")
        is_dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        commit = git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(is_dirty).lower()}
