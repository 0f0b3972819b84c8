"""Compute what a recipe would take on other data and GPUs: hours, memory, disk, money. Measures nothing.

    python -m benchmarks plan --recipe imagenet1k --classes 1000 --images 1281 --gpus 8,64,512

Operations are counted on networks without weights; memory and disk follow from shapes, as for `--dry-run`.
--tflops, --bandwidth and --price are the caller's assumptions; --rates takes a machine's measured rates.
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
from ims3_ray.jobs.distill.estimate import Estimate, estimate_stages, read_rates
from ims3_ray.models.device import Numerics
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.stages.base import Stage
from ims3_ray.stages.context import Context, Inputs
from ims3_ray.storage.artifacts import open_directory

from .random_inputs import class_name, describe_pipeline, size_named
from .tables import Results, parse_counts, print_head, print_row

COLUMNS = "stage | rows | hours on {} GPUs | driver GB | worker GB | node disk GB | storage GB"
CPUS_PER_GPU, MEMORY_PER_GPU = 8, 64e9
TEST_IMAGES = 50  # per class, as in ImageNet


@dataclass(frozen=True)
class StagePlan:
    """A stage's estimates by number of GPUs."""

    stage: str
    by_gpus: dict[int, Estimate]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="digits-paper", metavar="NAME|FILE", help="a recipe or a YAML file")
    add("--size", metavar="NAME", help="size of the generator: tiny, S/2, B/2, L/2, XL/2 (default XL/2)")
    add("--classes", type=int, default=10, metavar="N", help="number of classes (default 10)")
    add("--images", type=int, default=100, metavar="N", help="images per class (default 100)")
    add("--gpus", default="8,64,512", metavar="N,…", help="numbers of GPUs (default 8,64,512)")
    add("--tflops", type=float, default=200.0, metavar="N", help="sustained TFLOP/s per GPU (default 200)")
    add(
        "--bandwidth", type=float, default=25.0, metavar="N", help="Gbit/s per GPU between nodes (default 25)"
    )
    add("--rates", metavar="FILE", help="measured rates instead: gpu-check.json of benchmarks/gpu_check.sh")
    add("--price", type=float, default=4.0, metavar="N", help="price per GPU hour (default 4)")


def run(arguments: argparse.Namespace, work: Path) -> Results:
    """Print the table, and hours and money of the whole run; return all estimates."""
    counts = sorted(set(parse_counts(arguments.gpus, "--gpus", "8,64,512")))
    minimums = {"classes": 2, "images": 1, "tflops": 1e-6, "bandwidth": 1e-3, "price": 0}
    for option, minimum in minimums.items():
        if not getattr(arguments, option) >= minimum:
            raise InputError(f"--{option}: {getattr(arguments, option)} is too low; give {minimum} or more")
    config = load_config(arguments.recipe, parse_overrides(arguments.overrides))
    rates = read_rates(Path(arguments.rates)) if arguments.rates else {}
    images = label_sets(arguments.classes, arguments.images)
    contexts = {gpus: simulated_context(config, images, gpus, arguments.size, work) for gpus in counts}
    plans = [
        StagePlan(stage.name, dict(zip(counts, estimates, strict=True)))
        for stage, estimates in _estimates(
            contexts, rates or arguments.tflops * 1e12, arguments.bandwidth * 1e9 / 8
        )
    ]
    data = f"{arguments.classes:,} classes of {arguments.images:,} images"
    source = f"the rates of {arguments.rates}" if rates else f"{arguments.tflops:g} TFLOP/s per GPU"
    print(f"computed for {source}, {arguments.bandwidth:g} Gbit/s per GPU; {data}")
    print_head(COLUMNS.format(", ".join(map(str, counts))))
    for row in plans:
        _print_stage(row)
    totals = {gpus: sum(row.by_gpus[gpus].seconds for row in plans) / 3600 for gpus in counts}
    print()
    for gpus, hours in totals.items():
        longest = max(plans, key=lambda row: row.by_gpus[gpus].seconds)
        share = longest.by_gpus[gpus].seconds / 3600 / hours
        cost = f"{hours:,.1f} h, {gpus * hours * arguments.price:,.0f} at {arguments.price:g} per GPU hour"
        print(f"{gpus} GPUs: {cost}; {longest.stage} takes {share:.0%}")
    return {"stages": [asdict(row) for row in plans], "hours": totals}


def label_sets(classes: int, per_class: int) -> dict[str, ImageSet]:
    """Training, test and validation sets of this size that have labels only, and no files."""
    names, nowhere = tuple(map(class_name, range(classes))), open_directory("/")

    def labelled(count: int) -> ImageSet:
        labels = np.repeat(np.arange(classes), count)
        return ImageSet(nowhere, names, ("",) * len(labels), labels, ("",) * len(labels))

    train, test = labelled(per_class), labelled(min(TEST_IMAGES, per_class))
    return {"train": train, "test": test, "validation": test}


def simulated_context(
    config: Config, images: dict[str, ImageSet], gpus: int, size: str | None, work: Path
) -> Context:
    """The context of a run on a cluster of `gpus` GPUs, complete enough for the stages' cost models."""
    num_classes = len(images["train"].classes)
    machine = Machine("cuda", CPUS_PER_GPU * gpus, gpus, MEMORY_PER_GPU * gpus, Workers(gpus=gpus))
    config = config.model_copy(update={"finetune": config.finetune.scaled_to(gpus)})
    numerics = Numerics("cuda", config.model.precision.on("cuda"))
    info = describe_pipeline(size_named(size), work)
    inputs: Inputs = {"images": "", "model": "", "extractor": "", "scored": ""}
    storage, labels = open_directory(str(work)), list(range(num_classes))
    return Context(config, storage, machine, images, info, labels, numerics, inputs)


def _estimates(
    contexts: dict[int, Context], rate: float | dict[str, float], bandwidth: float
) -> list[tuple[Stage, tuple[Estimate, ...]]]:
    stages = [stage for stage in STAGES if stage.is_enabled(next(iter(contexts.values())))]
    by_gpus = [estimate_stages(context, stages, rate, bandwidth) for context in contexts.values()]
    return list(zip(stages, zip(*by_gpus, strict=True), strict=True))


def _print_stage(row: StagePlan) -> None:
    estimates = list(row.by_gpus.values())
    hours = ", ".join(f"{estimate.seconds / 3600:,.2f}" for estimate in estimates)
    first, worker = estimates[0], max(estimate.worker for estimate in estimates)
    gigabytes = (f"{size / 1e9:,.1f}" for size in (first.driver, worker, first.node_disk, first.disk))
    print_row(row.stage, f"{first.rows:,}", hours, *gigabytes)
