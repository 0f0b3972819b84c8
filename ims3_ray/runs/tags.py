"""What MLflow calls a run and its parts: every tag, the kinds of runs, metrics by the name of their stage."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ims3_ray.stages.context import Context

RUN = "ims3.run"  # the run's key
KIND, PROTOCOL, SCORED = "kind", "protocol", "scored"  # the protocol's label, the scored images' fingerprint
PARENT = "mlflow.parentRunId"  # MLflow's own: its pages nest by it
SWEEP_KEY, TRIAL_NUMBER, ERROR = "sweep", "trial", "error"  # of a trial
DISTILLATION, ABLATION, SWEEP, TRIAL = KINDS = ("distillation", "ablation", "sweep", "trial")
SPACE, OBJECTIVE = (
    "space.",
    "objective",
)  # a sweep's parameters: before each swept field, and names with commas
OBJECTIVES = {"accuracy": "accuracy"} | {  # what a sweep maximises → its name among a run's figures
    name: f"{name}/distilled"
    for name in ("coverage", "low_density_coverage", "density", "precision", "recall", "vendi")
}
ENVIRONMENT = ("version.", "hardware.")  # what such tags begin with


def run_tags(context: "Context") -> dict[str, str]:
    """What a run is besides its recipe: kind, versions, hardware, what its accuracy is measured by and on."""
    from ims3_ray.cluster.environment import hardware, versions  # heavy: a query does without Ray and torch
    from ims3_ray.evaluation.protocols import protocols

    config = context.config
    tags = {KIND: DISTILLATION} | {f"version.{name}": text for name, text in versions().items()}
    tags |= {f"hardware.{name}": str(value) for name, value in hardware(context.machine).items()}
    if "scored" in context.inputs:
        rules = protocols(config.evaluate.protocol, config.evaluate.networks)[0]
        tags |= {PROTOCOL: rules.label, SCORED: context.inputs["scored"]}
    return tags


def artifact_tags(artifacts: Iterable[str]) -> dict[str, str]:
    """`["selection/ab12"]` as `{"artifact.selection": "ab12"}`: runs are found by what they are made of."""
    return {f"artifact.{noun}": name for noun, name in (artifact.split("/") for artifact in artifacts)}


def prefix_metrics(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The evaluation's figures by their own names, others below their stage: `encode/seconds`."""
    is_result = stage == "evaluate" and "accuracy" in metrics
    return dict(metrics) if is_result else {f"{stage}/{name}": value for name, value in metrics.items()}
