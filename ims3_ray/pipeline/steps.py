"""The stages in order: where each one's artefact lies in a run, and running what is missing."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import cast

from ims3_ray.cluster.environment import machine_environment
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
    GpuUse,
    Manifest,
    Summary,
    complete,
    fingerprint,
    read_manifest,
    summary_of,
)
from ims3_ray.storage.integrity import reopen
from ims3_ray.storage.lease import exclusive

_logger = logging.getLogger(__name__)

STAGES: tuple[Stage, ...] = tuple(
    module.STAGE
    for module in (
        *(encode, invert, finetune, embed, sample, select, probe, refine, teacher, export, evaluate),
        report,
    )
)


@dataclass(frozen=True)
class Step:
    """A stage of one run: where its artefact lies, and its manifest once it is complete."""

    stage: Stage
    directory: Directory
    parents: dict[str, Directory]  # by noun, the artefacts that it reads
    manifest: Manifest | None
    damage: Mapping[str, str]  # of one that was complete: why, by file
    ran: bool = False  # here, in place of having been found or waited for

    @property
    def summary(self) -> Summary:
        """What a complete step did."""
        assert self.manifest, self.artifact
        return summary_of(self.manifest)

    @property
    def fingerprint(self) -> str:
        return self.directory.name

    @property
    def artifact(self) -> str:
        """Where it lies below the storage root."""
        return f"{self.stage.output}/{self.fingerprint}"

    def again(self) -> "Step":
        """The same as it is by now: another driver may have made it meanwhile."""
        manifest, damage = _state(self.directory)
        return replace(self, manifest=manifest, damage=damage)


def plan(context: Context, last: str | None = None) -> list[Step]:
    """The steps of a run, in order, as far as the stage `last`; nothing is run."""
    steps: dict[str, Step] = {}
    for stage in STAGES:
        if stage.is_enabled(context):
            nouns = [noun for noun in stage.inputs if noun in steps and stage.needs_input(context, noun)]
            parents = {noun: steps[noun].directory for noun in nouns}
            inputs = {noun: directory.name for noun, directory in parents.items()}
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


def _gpus(context: Context, stage: Stage) -> GpuUse:
    use = stage.gpu_usage(context)
    return {"used": use.gpus, "of": context.machine.gpus, "limit": use.limit}


def run_step(context: Context, step: Step) -> Step:
    """Run a step whose artefact is not complete, and write its manifest.

    If another driver is at work on the artefact, waits for it and takes what it made; a line says so. Parts
    of a damaged artefact are kept if their checksums hold; a line names the damaged files.
    """
    with exclusive(step.directory):
        step = step.again()
        return step if step.manifest else _make(context, step)


def _make(context: Context, step: Step) -> Step:
    stage = step.stage
    if step.damage:
        _logger.warning("%s; it is made again", DamagedError(step.directory, step.damage).finding)
        reopen(step.directory, step.damage)
    began = time.perf_counter()
    details = stage.run(context, step.directory, **step.parents)
    seconds = time.perf_counter() - began
    rows = cast(int, details.get("rows_made", details["rows"]))
    manifest = complete(
        step.directory,
        {
            "unit": stage.unit,
            **details,
            "stage": stage.name,
            "version": stage.version,
            "fingerprint": step.fingerprint,
            "inputs": {noun: directory.name for noun, directory in step.parents.items()},
            "seconds": round(seconds, 3),
            "rate": round(rows / seconds, 3),
            "device": context.machine.device,
            "environment": asdict(machine_environment(context.machine)),
            "gpus": _gpus(context, stage),
        },
    )
    if figures := stage.metrics(step.directory):
        context.on_metrics(stage.name, 0, figures)
    return replace(step, manifest=manifest, damage={}, ran=True)
