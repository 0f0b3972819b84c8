"""What Ray costs: a stage as the pipeline runs it, on one actor or Train worker, against the bare loop of the
same parts.

A rate is that of all batches but the first, between the moments that they were done: the start of a pool, and
what is compiled then, is apart.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray

from ims3_ray.cluster.fan_out import CALLS_PER_ACTOR, Worker, fan_out
from ims3_ray.cluster.machine import Machine
from ims3_ray.cluster.train import train
from ims3_ray.cluster.trainer import Optimisation
from ims3_ray.errors import InputError
from ims3_ray.stages.context import Context
from ims3_ray.stages.finetune.stage import InversionMatchingTask
from ims3_ray.storage.artifacts import Directory

from .stages import PoolWork, bare_trainer, pool_work, training_work

INTERVALS = 4  # between log steps, that a training is measured over


@dataclass(frozen=True)
class Overhead:
    """Images/s of both, medians of the repetitions; seconds before the pool's first batch is begun, and of
    all in all.
    """

    stage: str
    batches: int
    batch_size: int
    bare_images_per_s: float
    ray_images_per_s: float
    ratio: float
    start_s: float
    whole_s: float


@dataclass(frozen=True)
class Run:
    """One run under Ray."""

    images_per_s: float
    start_s: float
    whole_s: float


def overhead(context: Context, stage: str, work: Directory, *, batches: int, repetitions: int) -> Overhead:
    """Both ways of `stage`, in turn; `batches` of a pool (at least 3), or INTERVALS log intervals of a
    training.
    """
    one = context.machine.workers.model_copy(update={"actors": 1, "train_workers": 1})
    context = replace(context, machine=replace(context.machine, workers=one))
    measure = _training if stage == "finetune" else _pool
    turns = [measure(context, stage, work / f"{stage}-{n}", batches) for n in range(repetitions)]
    bare = statistics.median(bare for bare, _ in turns)
    rate, start, whole = (
        statistics.median(getattr(run, n) for _, run in turns) for n in ("images_per_s", "start_s", "whole_s")
    )
    if stage == "finetune":
        batches, size = INTERVALS * context.config.finetune.log_every, context.config.finetune.batch_size
    else:
        size = pool_work(context, stage, work / f"{stage}-size", 1).parts[0].rows
    return Overhead(stage, batches, size, bare, rate, rate / bare, start, whole)


def _pool(context: Context, stage: str, work: Directory, batches: int) -> tuple[float, Run]:
    made = pool_work(context, stage, work, batches)
    rows = made.parts[0].rows
    bare, out = work / "bare", work / "out"
    bare.delete()
    out.delete()
    times = _elsewhere(context.machine, bare_pool, made, bare, f"{stage}.batch_size.{context.machine.device}")
    began = time.time()
    fan_out(
        made.build,
        made.arguments,
        made.parts,
        table=made.table,
        out=out,
        machine=context.machine,
        stage=stage,
    )
    whole = time.time() - began
    done = sorted(info.mtime_ns / 1e9 for name, info in out.files().items() if name.endswith(".parquet"))
    # the last parts find the device free, and are done as soon as those before them
    steady = done[: 1 - CALLS_PER_ACTOR]
    rate = rows * (len(steady) - 1) / (steady[-1] - steady[0])
    return rows * (batches - 1) / (times[-1] - times[0]), Run(rate, done[0] - began - rows / rate, whole)


def bare_pool(work: PoolWork, out: Directory, batch_field: str) -> list[float]:
    """Make all parts in this process, files written; gives the moments at which they were done."""
    worker, done = Worker(work.build, work.arguments, work.table, out, batch_field), []
    for part in work.parts:
        made = worker({name: [value] for name, value in part.item.items()})  # a batch of one row
        if made["refused"][0]:
            raise InputError(made["refused"][0])
        done.append(time.time())
    return done


def _training(context: Context, stage: str, work: Directory, batches: int) -> tuple[float, Run]:
    arguments, numbers = training_work(context, work, INTERVALS * context.config.finetune.log_every)
    bare = _elsewhere(context.machine, bare_training, arguments, numbers, context.machine.device)
    (work / "checkpoints").delete()
    heard: list[float] = []
    began = time.time()
    history = train(
        InversionMatchingTask,
        arguments,
        numbers,
        out=work / "adapter",
        checkpoints=work / "checkpoints",
        name="bench",
        stage=stage,
        batch_field="finetune.batch_size",
        machine=context.machine,
        on_metrics=lambda step, metrics: heard.append(time.time()),
    )
    whole = time.time() - began
    first = numbers.log_every * numbers.batch_size / history[0]["images_per_s"]
    return _steady(bare), Run(_steady(history), heard[0] - began - first, whole)


def bare_training(arguments: dict, numbers: Optimisation, device: str) -> list[dict[str, float]]:
    """All steps in this process; gives the logged metrics."""
    trainer = bare_trainer(arguments, numbers, device)
    while trainer.step < numbers.steps:
        trainer.advance()
    return trainer.history


def _elsewhere(machine: Machine, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a process of its own, with what an actor of a pool reserves."""
    return ray.get(ray.remote(max_calls=1)(function).options(**machine.actor_resources).remote(*arguments))


def _steady(history: list[dict[str, float]]) -> float:
    """Images/s over all log intervals but the first."""
    return (len(history) - 1) / sum(1 / entry["images_per_s"] for entry in history[1:])
