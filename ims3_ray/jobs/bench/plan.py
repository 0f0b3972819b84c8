"""`bench plan`: what a recipe would take on a data set and GPUs that are not here; nothing is measured.

Operations are counted on networks without weights, memory and disk come from shapes, as `--dry-run` has them;
the operations a second of a GPU and the price of its hour are the person's to give.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.settings import Config, Workers
from ims3_ray.data.images import ImageSet
from ims3_ray.errors import InputError
from ims3_ray.jobs.distill.estimate import Estimate, estimate_stages
from ims3_ray.models.device import Numerics
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.stages.base import Stage
from ims3_ray.stages.context import Context, Inputs
from ims3_ray.storage.artifacts import open_directory

from .figures import Figures, print_head, print_row, whole_numbers
from .models import class_name, described_pipeline, size_named

COLUMNS = "stage | rows | hours on {} GPUs | driver GB | worker GB | node disk GB | storage GB"
CPUS_A_GPU, MEMORY_A_GPU = 8, 64e9
SCORED = 50  # test images a class, as ImageNet has


@dataclass(frozen=True)
class Planned:
    """A stage's estimates by number of GPUs."""

    stage: str
    by_gpus: dict[int, Estimate]


def run(arguments: argparse.Namespace, work: Path) -> Figures:
    """Print the table, and hours and money of the whole; gives all figures."""
    counts = whole_numbers(arguments.gpus, "--gpus", "GPUs", "8,64,512")
    rate = arguments.tflops * 1e12
    classes = int(arguments.classes) if arguments.classes.isdecimal() else 0
    if classes < 2 or arguments.images < 1 or not arguments.tflops > 0 or not arguments.price >= 0:
        raise InputError(
            "--classes, --images, --tflops, --price: a plan is of 2 or more classes (one number), 1 or more "
            "images a class, a rate above 0 and a price of 0 or more"
        )
    config = load_config(arguments.recipe, parse_overrides(arguments.overrides))
    made = images_of(classes, arguments.images)
    contexts = {gpus: context_of(config, made, gpus, arguments.size, work) for gpus in counts}
    planned = [
        Planned(stage.name, dict(zip(counts, estimates, strict=True)))
        for stage, estimates in _estimates(contexts, rate)
    ]
    print(
        f"computed, at {arguments.tflops:g} TFLOP/s a GPU; {classes:,} classes of {arguments.images:,} images"
    )
    print_head(COLUMNS.format(", ".join(map(str, counts))))
    for row in planned:
        _print_stage(row)
    totals = {gpus: sum(row.by_gpus[gpus].seconds for row in planned) / 3600 for gpus in counts}
    print()
    for gpus, hours in totals.items():
        longest = max(planned, key=lambda row: row.by_gpus[gpus].seconds)
        share = longest.by_gpus[gpus].seconds / 3600 / hours
        cost = f"{hours:,.1f} h, {gpus * hours * arguments.price:,.0f} at {arguments.price:g} a GPU hour"
        print(f"{gpus} GPUs: {cost}; {share:.0%} of it {longest.stage}")
    return {"stages": [asdict(row) for row in planned], "hours": totals}


def images_of(classes: int, per_class: int) -> dict[str, ImageSet]:
    """Training and scored sets of so many images, of which nothing but the labels is there."""
    names, nowhere = tuple(map(class_name, range(classes))), open_directory("/")

    def made(count: int) -> ImageSet:
        labels = np.repeat(np.arange(classes), count)
        return ImageSet(nowhere, names, ("",) * len(labels), labels, ("",) * len(labels))

    train, scored = made(per_class), made(min(SCORED, per_class))
    return {"train": train, "test": scored, "validation": scored}


def context_of(
    config: Config, images: dict[str, ImageSet], gpus: int, size: str | None, work: Path
) -> Context:
    """A run on a cluster of so many GPUs, as far as stages' costs ask."""
    num_classes = len(images["train"].classes)
    machine = Machine("cuda", CPUS_A_GPU * gpus, gpus, MEMORY_A_GPU * gpus, Workers(gpus=gpus))
    config = config.model_copy(update={"finetune": config.finetune.scaled_to(gpus)})
    numerics = Numerics("cuda", config.model.precision.on("cuda"))
    info = described_pipeline(size_named(size), work)
    inputs: Inputs = {"images": "", "model": "", "extractor": "", "scored": ""}
    storage, labels = open_directory(str(work)), list(range(num_classes))
    return Context(config, storage, machine, images, info, labels, numerics, inputs)


def _estimates(contexts: dict[int, Context], rate: float) -> list[tuple[Stage, tuple[Estimate, ...]]]:
    stages = [stage for stage in STAGES if stage.is_part(next(iter(contexts.values())))]
    by_gpus = [estimate_stages(context, stages, rate) for context in contexts.values()]
    return list(zip(stages, zip(*by_gpus, strict=True), strict=True))


def _print_stage(row: Planned) -> None:
    estimates = list(row.by_gpus.values())
    hours = ", ".join(f"{estimate.seconds / 3600:,.2f}" for estimate in estimates)
    first, worker = estimates[0], max(each.worker for each in estimates)
    held = (f"{value / 1e9:,.1f}" for value in (first.driver, worker, first.node_disk, first.disk))
    print_row(row.stage, f"{first.rows:,}", hours, *held)
