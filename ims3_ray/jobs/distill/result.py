"""The result of a distillation: its lines on the terminal, and finding it again without heavy imports."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ims3_ray.config.settings import Config
from ims3_ray.display import align_columns, noun
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import evaluation_lines
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.runs import plan_cache
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import (
    Directory,
    GpuUse,
    Summary,
    check_format,
    open_directory,
    read_manifest,
    summary_of,
)

if TYPE_CHECKING:
    from ims3_ray.evaluation.results import Evaluation


class StageRun(Summary):
    """A stage of a run; `ran` is False if its artefact was complete already."""

    name: str
    ran: bool
    gpus: GpuUse | None  # when the artefact was made


@dataclass(frozen=True)
class Distillation:
    """The result of a run. `figures` are its headline metrics, named as in MLflow."""

    key: str
    distilled: str  # path or URI of the distilled set
    report: str
    evaluation: "Evaluation | None"
    figures: dict[str, float]
    stages: list[StageRun]
    mlflow_run_id: str | None
    tracking_uri: str = field(repr=False)  # may hold a password


def find_complete(config: Config) -> Distillation | None:
    """Return the run of `config` if it has finished and all its artefacts are intact; else None.

    Uses the plan cache, without Ray, torch and MLflow.
    """
    storage = open_directory(config.storage)
    tracking_uri(storage)  # refuses a bucket without a tracking server, before any request
    # workers.strict compares environments, which needs a plan
    may_be_cached = not config.workers.strict and check_format(storage)
    plan = plan_cache.find(storage, config) if may_be_cached else None
    if not plan or not plan["is_finished"] or not storage.exists(f"runs/{plan['run']}/run.json"):
        return None
    stages: list[StageRun] = []
    artifacts: dict[str, Directory] = {}
    for name, artifact in plan["steps"]:
        artifacts[name] = storage / artifact
        try:
            manifest = read_manifest(artifacts[name])
        except InputError:
            return None
        if manifest is None:
            return None
        stages.append({"name": name, "ran": False, "gpus": manifest.get("gpus"), **summary_of(manifest)})
    for note in plan["notes"]:
        print(note)
    is_scored = "evaluate" in artifacts
    return Distillation(
        key=plan["run"].rpartition("-")[2],
        distilled=artifacts["export"].uri,
        report=(artifacts["report"] / "index.html").uri,
        evaluation=artifacts["evaluate"].read_json("evaluation.json") if is_scored else None,
        figures={},
        stages=stages,
        mlflow_run_id=None,
        tracking_uri="",
    )


def summary_lines(config: Config, distillation: Distillation) -> list[str]:
    """The last lines of a run: accuracies, stages, places of the results, next commands."""
    lines = [*evaluation_lines(distillation.evaluation), ""] if distillation.evaluation else []
    rows = [["stage", "rows", "unit", "seconds", "rows/s", ""]]
    for stage in distillation.stages:
        numbers = f"{stage['seconds']:.1f}", f"{stage['rate']:.2f}"
        unit, state = noun(stage["rows"], stage["unit"]), "" if stage["ran"] else "found complete"
        rows.append([stage["name"], str(stage["rows"]), unit, *numbers, state])
    lines += align_columns(rows, left=(0, 2, 5), indent=2)
    query = shell_command("runs", f"storage={config.storage}", "--where", f"run={distillation.key}")
    results = {"distilled set": distillation.distilled, "report": distillation.report}
    commands = {"query": query, "look": shell_command("view", config.storage)}
    return [*lines, "", *result_lines(results, commands)]
