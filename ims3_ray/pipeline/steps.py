"""The stages in order: plan the steps of a run, and run those whose artefact is missing."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import cast

from ims3_ray.cluster.environment import machine_environment
from ims3_ray.cluster.monitor import gpu_load
from ims3_ray.stages import embed, encode, export, invert, report
from ims3_ray.stages.base import Stage
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate import stage as evaluate
from ims3_ray.stages.evaluate import teacher
from ims3_ray.stages.finetune import stage as finetune
from ims3_ray.stages.refine import probe
from ims3_ray.stages.refine import stage as refine
from ims3_ray.stages.sample import stage as sample
from ims3_ray.stages.select import stage as select
from ims3_ray.storage.artifacts import (
    DamagedError,
    Directory,
    Manifest,
    Summary,
    complete,
    fingerprint,
    read_manifest,
    summary_of,
)
from ims3_ray.storage.integrity import read_or_reopen
from ims3_ray.storage.lease import exclusive

STAGES: tuple[Stage, ...] = tuple(
    module.STAGE
    for module in (
        *(encode, invert, finetune, embed, sample, select, probe, refine, teacher, export, evaluate),
        report,
    )
)


@dataclass(frozen=True)
class Step:
    """A stage of one run: the directory of its artefact, and its manifest if it is complete."""

    stage: Stage
    directory: Directory
    parents: dict[str, Directory]  # input artefacts by kind
    manifest: Manifest | None
    damage: Mapping[str, str]  # of a complete artefact: reason by file
    ran: bool = False  # by this driver; False if the artefact was found

    @property
    def summary(self) -> Summary:
        """Rows, seconds and rate of a complete step."""
        assert self.manifest, self.artifact
        return summary_of(self.manifest)

    @property
    def fingerprint(self) -> str:
        return self.directory.name

    @property
    def artifact(self) -> str:
        """Path of the artefact below the storage."""
        return f"{self.stage.output}/{self.fingerprint}"

    def refreshed(self) -> "Step":
        """The step with its current state: another driver may have completed it."""
        manifest, damage = _state(self.directory)
        return replace(self, manifest=manifest, damage=damage)


def plan(context: Context, last: str | None = None) -> list[Step]:
    """The steps of a run in order, up to the stage `last`. Runs nothing."""
    steps: dict[str, Step] = {}
    for stage in STAGES:
        if stage.is_enabled(context):
            kinds = [kind for kind in stage.inputs if kind in steps and stage.needs_input(context, kind)]
            parents = {kind: steps[kind].directory for kind in kinds}
            inputs = {kind: directory.name for kind, directory in parents.items()}
            key = fingerprint([stage.name, stage.version, stage.fingerprint_inputs(context), inputs])
            directory = context.storage / stage.output / key
            steps[stage.output] = Step(stage, directory, parents, *_state(directory))
        if stage.name == last:
            break
    return list(steps.values())


def _state(directory: Directory) -> tuple[Manifest | None, Mapping[str, str]]:
    try:
        return read_manifest(directory), {}
    except DamagedError as error:
        return None, error.files


def run_step(context: Context, step: Step) -> Step:
    """Run a step whose artefact is incomplete, and write its manifest.

    If another driver works on the artefact, waits for it and uses its result; a line says so. Undamaged parts
    of a damaged artefact are kept; a line names the damaged files.
    """
    with exclusive(step.directory):
        if manifest := read_or_reopen(step.directory):
            return replace(step, manifest=manifest, damage={})
        return _run(context, step)


def _run(context: Context, step: Step) -> Step:
    stage = step.stage
    start = time.perf_counter()
    with gpu_load(context.machine) as load:
        details = stage.run(context, step.directory, **step.parents)
    seconds = time.perf_counter() - start
    usage, rows = stage.gpu_usage(context), cast(int, details.get("rows_made", details["rows"]))
    manifest = complete(
        step.directory,
        {
            "unit": stage.unit,
            **details,
            "stage": stage.name,
            "version": stage.version,
            "fingerprint": step.fingerprint,
            "inputs": {kind: directory.name for kind, directory in step.parents.items()},
            "seconds": round(seconds, 3),
            "rate": round(rows / seconds, 3),
            "device": context.machine.device,
            "environment": asdict(machine_environment(context.machine)),
            "gpus": {"used": usage.gpus, "of": context.machine.gpus, "limit": usage.limit, **load},
        },
    )
    if metrics := stage.metrics(step.directory):
        context.on_metrics(stage.name, 0, metrics)
    return replace(step, manifest=manifest, damage={}, ran=True)
