"""This project's own path of a stage: its worker class, built and called as an actor of the pipeline does it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ims3_ray.cluster.fan_out import CALLS_PER_ACTOR, Part
from ims3_ray.cluster.trainer import Optimisation, Trainer
from ims3_ray.data.reading import payloads
from ims3_ray.models.device import prepare_device
from ims3_ray.stages.context import Context
from ims3_ray.stages.encode import Encoder, encoder_arguments
from ims3_ray.stages.finetune.stage import InversionMatchingTask, optimisation, task_arguments
from ims3_ray.stages.invert import Inverter, inverter_arguments
from ims3_ray.stages.sample.stage import Sampler, sampler_arguments
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, part_names
from ims3_ray.storage.tables import Table

from .models import random_latents
from .operations import operations
from .sides import Side

POOLS = ("sample", "encode", "invert")  # stages that fan out; finetune runs on Ray Train
ENDLESS = 10**9  # steps: a bench stops by time


@dataclass(frozen=True)
class PoolWork:
    """What `fan_out` is given to make a number of a stage's batches."""

    build: Callable[..., Callable[[Any], Any]]
    arguments: dict[str, Any]
    parts: list[Part]
    table: Table


def pool_work(context: Context, stage: str, work: Directory, num_parts: int) -> PoolWork:
    """`num_parts` full batches of `stage`, one of POOLS; latents that it reads are written below `work`."""
    mirror = context.config.data.mirror
    if stage == "sample":
        size, classes = context.batch_size(context.config.sample), len(context.classes)
        rows = [[i % classes, 0, i // classes] for i in range(num_parts * size)]
        parts = [Part(n, size, rows[n * size : (n + 1) * size]) for n in range(num_parts)]
        return PoolWork(Sampler, sampler_arguments(context, None), parts, tables.CANDIDATES)
    size, train = context.batch_size(context.config.encode), context.images["train"]
    if stage == "encode":
        cut = payloads(train, (np.arange(num_parts * size) % len(train)).tolist(), size)
        parts = [Part(n, size, payload) for n, payload in enumerate(cut)]
        return PoolWork(
            Encoder, encoder_arguments(context), parts, tables.MIRRORED_LATENTS if mirror else tables.LATENTS
        )
    latents, _ = random_latents(context, work, num_parts, size)  # in parts of the size that encode makes
    parts = [Part(n, size, name) for n, name in enumerate(part_names(latents))]
    table = tables.MIRRORED_INVERSIONS if mirror else tables.INVERSIONS
    return PoolWork(Inverter, inverter_arguments(context, latents), parts, table)


def training_work(context: Context, work: Directory, steps: int) -> tuple[dict[str, Any], Optimisation]:
    """What an `InversionMatchingTask` is built with and how it is trained, on latents written below `work`."""
    latents, inversions = random_latents(context, work, 1, max(256, context.config.finetune.batch_size))
    return task_arguments(context, latents, inversions), optimisation(context.config.finetune, steps)


def own_side(context: Context, stage: str, work: Directory) -> Side:
    """The side "own" of `stage` at the batch size of the context's recipe; what it reads is written below
    `work`.
    """
    config = context.config
    if stage == "finetune":
        size = config.finetune.batch_size
        arguments, numbers = training_work(context, work, ENDLESS)
        build, arguments = (
            TrainingStep,
            {"arguments": arguments, "numbers": numbers, "device": context.machine.device},
        )
        images, field = size, "finetune.batch_size"
        how = f"latents read, {config.finetune.micro_batches} parts, EMA of DiffFit's parameters"
    else:
        size, field = (
            context.batch_size(getattr(config, stage)),
            f"{stage}.batch_size.{context.machine.device}",
        )
        made = pool_work(context, stage, work, 1)
        build, arguments = (
            WorkerCall,
            {"build": made.build, "arguments": made.arguments, "payload": made.parts[0].payload},
        )
        images = made.parts[0].rows
        how = {
            "sample": f"{config.sample.steps} {config.sample.sampler} steps, guidance {config.sample.guidance_scale:g}, "
            "PNG and features",
            "encode": "files decoded on threads",
            "invert": f"{config.invert.points} points, parts of {images} images",
        }[stage]
    return Side(
        name="own",
        settings=f"{context.numerics.precision}{', compiled blocks' if context.numerics.compiled else ''}, {how}",
        build=build,
        arguments=arguments,
        batch_size=size,
        images=images,
        operations=operations(context, stage).own,
        batch_field=field,
        calls_at_once=CALLS_PER_ACTOR if stage in POOLS else 1,
    )


class WorkerCall:
    """A pool's worker, called with one payload again and again."""

    def __init__(self, build: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any], payload: Any):
        self._worker, self._payload = build(**arguments), payload

    def __call__(self) -> Any:
        return self._worker(self._payload)


class TrainingStep:
    """The training loop of one Train worker, a step a call."""

    def __init__(self, arguments: dict[str, Any], numbers: Optimisation, device: str):
        self.trainer = bare_trainer(arguments, numbers, device)

    def __call__(self) -> dict[str, float]:
        return self.trainer.advance()

    def checkpoint(self) -> dict[str, Any]:
        """What a run resumes from."""
        return self.trainer.state_dict()


def bare_trainer(arguments: dict[str, Any], numbers: Optimisation, device: str) -> Trainer:
    """Fine-tuning's task and loop in this process, as the only Train worker has them."""
    on: torch.device = prepare_device(device)
    return Trainer(InversionMatchingTask(device=on, **arguments), numbers, 0, 1, on)
