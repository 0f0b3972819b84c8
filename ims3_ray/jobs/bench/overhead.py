"""`bench pipeline`, what Ray costs: a stage on one actor or Train worker against the bare loop of its parts.

A rate is that of all batches but the first, between the moments that they were done: the start of a pool, and
what is compiled then, is apart.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import ray

from ims3_ray.cluster.fan_out import CALLS_PER_ACTOR, Worker, fan_out
from ims3_ray.cluster.resources import Machine
from ims3_ray.cluster.train import Training, train
from ims3_ray.errors import InputError
from ims3_ray.models.training import Optimisation
from ims3_ray.stages.context import Context
from ims3_ray.stages.finetune.task import InversionMatchingTask
from ims3_ray.storage.artifacts import Directory, open_directory

from .command import STAGES
from .figures import Figures, print_head, print_row
from .own import PoolWork, bare_trainer, pool_work, training_work
from .recipe import prepare_contexts

COLUMNS = "stage | batches × size | bare images/s | Ray images/s | ratio | start-up s | whole s"
INTERVALS = 4  # between log steps, that a training is measured over
P = ParamSpec("P")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Turn:
    """Images/s of both ways; seconds before the pool's first batch is begun, and of all in all."""

    batches: int
    batch_size: int
    bare_images_per_s: float
    ray_images_per_s: float
    start_s: float
    whole_s: float


def run(arguments: argparse.Namespace, work: Path) -> Figures:
    """Print the table; gives all figures, with what they were measured on."""
    stages = arguments.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise InputError(f"--stages: {unknown[0]!r} is none of {', '.join(STAGES)}")
    (context, *_), _, document = prepare_contexts(arguments, work)
    one = context.machine.workers.model_copy(update={"actors": 1, "train_workers": 1})
    context = replace(context, machine=replace(context.machine, workers=one))
    folder = open_directory(str(work / "pipeline"))
    print_head(COLUMNS)
    rows: list[Figures] = []
    for stage in stages:
        measure = _training if stage == "finetune" else _pool
        numbers = range(arguments.repetitions)
        turns = [measure(context, stage, folder / f"{stage}-{n}", arguments.batches) for n in numbers]
        o = Turn(
            *(statistics.median(column) for column in zip(*(vars(t).values() for t in turns), strict=True))
        )
        ratio = o.ray_images_per_s / o.bare_images_per_s
        rates = f"{o.bare_images_per_s:.4g}", f"{o.ray_images_per_s:.4g}", f"{ratio:.3f}"
        print_row(stage, f"{o.batches} × {o.batch_size}", *rates, f"{o.start_s:.1f}", f"{o.whole_s:.1f}")
        rows.append({"stage": stage, "ratio": ratio} | asdict(o))
    return document | {"stages": rows}


def _pool(context: Context, stage: str, work: Directory, batches: int) -> Turn:
    """`batches` batches, at least 3."""
    pool = pool_work(context, stage, work, batches)
    rows = pool.parts[0].rows
    bare, out = work / "bare", work / "out"
    bare.delete()
    out.delete()
    times = _elsewhere(context.machine, bare_pool, pool, bare, f"{stage}.batch_size.{context.machine.device}")
    began = time.time()
    fan_out(
        pool.build,
        pool.arguments,
        pool.parts,
        table=pool.table,
        out=out,
        machine=context.machine,
        stage=stage,
    )
    whole = time.time() - began
    done = sorted(info.mtime_ns / 1e9 for name, info in out.files().items() if name.endswith(".parquet"))
    # the last parts find the device free, and are done as soon as those before them
    steady = done[: 1 - CALLS_PER_ACTOR]
    bare_rate, rate = (rows * (len(at) - 1) / (at[-1] - at[0]) for at in (times, steady))
    return Turn(batches, rows, bare_rate, rate, done[0] - began - rows / rate, whole)


def bare_pool(work: PoolWork, out: Directory, batch_field: str) -> list[float]:
    """Make all parts in this process, files written; gives the moments at which they were done."""
    worker = Worker(work.build, work.arguments, work.table, out, batch_field)
    done: list[float] = []
    for part in work.parts:
        row = worker({name: [value] for name, value in part.item.items()})  # a batch of one row
        if row["refused"][0]:
            raise InputError(row["refused"][0])
        done.append(time.time())
    return done


def _training(context: Context, stage: str, work: Directory, _batches: int) -> Turn:
    """INTERVALS log intervals."""
    settings = context.config.finetune
    steps = INTERVALS * settings.log_every
    arguments, numbers = training_work(context, work, steps)
    bare = _elsewhere(context.machine, bare_training, arguments, numbers, context.machine.device)
    (work / "checkpoints").delete()
    heard: list[float] = []
    training = Training(
        name="bench",
        build=InversionMatchingTask,
        arguments=arguments,
        optimisation=numbers,
        out=work / "adapter",
        checkpoints=work / "checkpoints",
        batch_field="finetune.batch_size",
    )
    began = time.time()
    history = train(training, context.machine, stage, lambda _step, _metrics: heard.append(time.time()))
    whole = time.time() - began
    first = settings.log_every * settings.latents / history[0]["images_per_s"]
    start = heard[0] - began - first
    return Turn(steps, settings.latents, _steady(bare), _steady(history), start, whole)


def bare_training(
    arguments: dict[str, object], numbers: Optimisation, device: str
) -> Sequence[Mapping[str, float]]:
    """All steps in this process; gives the logged metrics."""
    trainer = bare_trainer(arguments, numbers, device)
    while trainer.step < numbers.steps:
        trainer.advance()
    return trainer.history


def _elsewhere(machine: Machine, function: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
    """`function(...)` in a process of its own, with what an actor of a pool reserves."""
    task = ray.remote(max_calls=1)(function).options(**machine.actor_resources)
    return ray.get(task.remote(*args, **kwargs))


def _steady(history: Sequence[Mapping[str, float]]) -> float:
    """Images/s over all log intervals but the first."""
    return (len(history) - 1) / sum(1 / entry["images_per_s"] for entry in history[1:])
