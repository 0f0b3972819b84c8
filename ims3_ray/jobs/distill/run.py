"""Run a distillation: plan, make the missing stages, record them, and return the result."""

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
    """Distil a data set by `recipe`, a name or a YAML path.

    `overrides` are fields by section: `ipc=10, sample={"subgroups": 20}`. `say` receives the lines for the
    user. Raises InputError, before any heavy work, if the run is impossible.
    """
    return run(load_config(recipe, overrides), say)


def run(config: Config, print_line: Callable[[str], None] = progress.print_line) -> Distillation:
    """Run the stages of `config` whose artefacts are not complete."""
    signature = plan_cache.signature(config)
    with progress.spinner("start"):
        (context,) = prepare_runs([config], print_line)
        folder = context.storage / "runs" / f"{config.recipe}-{plan(context)[-1].fingerprint}"
    with exclusive(folder):
        return _run(context, signature, print_line)


def _run(context: Context, signature: str | None, print_line: Callable[[str], None]) -> Distillation:
    with progress.spinner("start"):
        recorder = Recorder(context, plan(context), print_line)
    context = replace(context, on_metrics=recorder.on_metrics)
    done: dict[str, Step] = {}  # by output
    steps = plan(context)  # a second time: from now on the record protects complete artefacts from --gc
    artifacts = {step.stage.name: step.artifact for step in steps}
    cache = partial(plan_cache.write, context.storage, signature, recorder.name, artifacts, context.notes)
    cache(is_finished=False)
    with recorder.recording():
        for planned in steps:
            step = planned.refreshed()
            if step.manifest is None:
                recorder.begin_stage(step)
                step = run_step(context, step)
            recorder.end_stage(step)
            done[step.stage.output] = step
        recorder.log_outputs(done["distilled"], done["report"])
    cache(is_finished=recorder.tracker.is_finished)
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
