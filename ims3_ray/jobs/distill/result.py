"""What a run made, and how it is told at its end."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ims3_ray.config.settings import Config
from ims3_ray.display import noun
from ims3_ray.evaluation.table import evaluation_lines
from ims3_ray.jobs.next_steps import result_lines, shell_command
from ims3_ray.storage.artifacts import GpuUse, Summary

if TYPE_CHECKING:
    from ims3_ray.evaluation.results import Evaluation


class StageRun(Summary):
    """A stage of a run, and whether this call ran it."""

    name: str
    ran: bool
    gpus: GpuUse | None  # as it was made


@dataclass(frozen=True)
class Distillation:
    """What a run made. `figures` are the headline metrics, as MLflow has them."""

    key: str
    distilled: str  # path or URI of the distilled set
    report: str
    evaluation: "Evaluation | None"
    figures: dict[str, float]
    stages: list[StageRun]
    mlflow_run_id: str | None
    tracking_uri: str = field(repr=False)  # may hold a password


def summary_lines(config: Config, distillation: Distillation) -> list[str]:
    """The short table at the end of a run, and where everything is."""
    lines = [*evaluation_lines(distillation.evaluation), ""] if distillation.evaluation else []
    lines.append(f"  {'stage':<10}{'rows':>8} {'unit':<12}{'seconds':>9}{'rows/s':>10}")
    for stage in distillation.stages:
        work = f"{stage['rows']:>8} {noun(stage['rows'], stage['unit']):<12}"
        work += f"{stage['seconds']:>9.1f}{stage['rate']:>10.2f}"
        lines.append(f"  {stage['name']:<10}{work}{'' if stage['ran'] else '  found complete'}")
    query = shell_command("runs", f"storage={config.storage}", "--where", f"run={distillation.key}")
    made = {"distilled set": distillation.distilled, "report": distillation.report}
    return [*lines, "", *result_lines(made, {"query": query, "look": shell_command("view", config.storage)})]
