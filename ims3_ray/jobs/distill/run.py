"""A whole distillation: prepare, run the stages that are missing, track, and say what came out."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ims3_ray import progress
from ims3_ray.config.load import load_config
from ims3_ray.config.settings import Config
from ims3_ray.pipeline.prepare import prepare_runs
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.runs import plan_cache
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.stages.context import Context
from ims3_ray.storage.lease import exclusive

from .recorder import Recorder
from .result import Distillation


def distill(
    recipe: str = "digits", say: Callable[[str], None] = progress.print_line, **overrides: Any
) -> Distillation:
    """Distil as `recipe` (a name or a YAML path) says.

    `overrides` go by section: `ipc=10, sample={"subgroups": 20}`; `say` takes the lines that a person should
    read. Raises InputError, before any heavy work, for what can't be run.
    """
    return run(load_config(recipe, overrides), say)


def run(config: Config, say: Callable[[str], None] = progress.print_line) -> Distillation:
    """Distil as `config` says: stages that are complete are found, the others run."""
    signature = plan_cache.signature(config)
    with progress.spinner("start"):
        (context,) = prepare_runs([config], say)
        folder = context.storage / "runs" / f"{config.recipe}-{plan(context)[-1].fingerprint}"
    with exclusive(folder):
        return _run(context, signature, say)


def _run(context: Context, signature: str | None, say: Callable[[str], None]) -> Distillation:
    with progress.spinner("start"):
        recorder = Recorder(context, plan(context), say)
    context = replace(context, on_metrics=recorder.hear)
    done: dict[str, Step] = {}  # by noun
    steps = plan(context)  # again: what is complete now stays, for the record names it
    artifacts = {step.stage.name: step.artifact for step in steps}
    keep = partial(plan_cache.write, context.storage, signature, recorder.name, artifacts, context.notes)
    keep(is_finished=False)
    with recorder.recording():
        for planned in steps:
            step = planned.refreshed()
            if step.manifest is None:
                recorder.begin_stage(step)
                step = run_step(context, step)
            recorder.end_stage(step)
            done[step.stage.output] = step
    recorder.log_product(done["distilled"], done["report"])
    keep(is_finished=recorder.tracker.is_finished)
    scored = done.get("evaluation")
    return Distillation(
        key=recorder.key,
        distilled=done["distilled"].directory.uri,
        report=(done["report"].directory / "index.html").uri,
        evaluation=scored.directory.read_json("evaluation.json") if scored else None,
        figures=dict(scored.stage.metrics(scored.directory)) if scored else {},
        stages=recorder.stages,
        mlflow_run_id=recorder.tracker.run_id,
        tracking_uri=tracking_uri(context.storage),
    )
