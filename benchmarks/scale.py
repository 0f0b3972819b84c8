"""Run the whole pipeline on generated images for several numbers of classes; report time and memory growth.

    python -m benchmarks scale --classes 10,100,1000

Uses the recipe's generator with new class rows: the images mean nothing, their cost is real. Memory is the
unique set size (USS), sampled five times per second, of this process and of the largest local Ray worker.
"""

import argparse
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.pipeline.prepare import prepare_runs
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.stages.context import Context
from ims3_ray.storage.disk_cache import cached_bytes

from .tables import Results, measure_worker_device, parse_counts, print_head, print_row, provenance

COLUMNS = "stage | classes | rows | seconds | grows as rows^ | driver GB | largest worker GB | MB written"
SIZE = 32  # pixels per side of the generated images
INTERVAL_S = 0.2  # between samples of memory
WORKER = "ray::"  # prefix of the process title of a busy Ray worker
SMALL: dict[str, object] = {  # few network passes: their number is known to count linearly
    "ipc": 50,
    "invert.steps": 2,
    "finetune.epochs": 1,
    "sample.steps": 2,
    "evaluate.protocol": "smoke",
    "evaluate.seeds": 2,
    "evaluate.full": False,
    "evaluate.unrefined": False,
}


@dataclass
class Peak:
    """Peak bytes: USS of this process, USS of any Ray worker, size of the disk caches."""

    driver: int = 0
    worker: int = 0
    node_disk: int = 0


@dataclass(frozen=True)
class Cost:
    """Cost of a stage; `exponent` is the growth of seconds with rows since the previous number of classes."""

    stage: str
    classes: int
    rows: int
    seconds: float
    exponent: float | None
    driver_gb: float
    worker_gb: float
    written_mb: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="digits-paper", metavar="NAME|FILE", help="a recipe or a YAML file")
    add("--classes", default="10,100", metavar="N,…", help="numbers of classes (default 10,100)")
    add("--images", type=int, default=100, metavar="N", help="images per class (default 100)")


def run(arguments: argparse.Namespace, work: Path) -> Results:
    """Print the table; return all results with their provenance."""
    costs: list[Cost] = []
    document: Results = {}
    for classes in parse_classes(arguments.classes):
        context = _context(arguments, work, classes)
        if not document:
            document = provenance(arguments, context.machine, measure_worker_device(context.machine))
            print_head(COLUMNS)
        before = {cost.stage: cost for cost in costs}
        costs += [_measure(context, step, before.get(step.stage.name)) for step in plan(context)]
    return document | {"images_per_class": arguments.images, "stages": [asdict(cost) for cost in costs]}


def make_images(folder: Path, classes: int, images: int, seed: int) -> Path:
    """Write class folders of seeded smooth noise, 32 pixels per side; keep a complete folder."""
    done = folder / ".done"
    if done.exists():
        return folder
    rng = np.random.default_rng(seed)
    for label in range(classes):
        class_folder = folder / f"class-{label:05d}"
        class_folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (images, 4, 4, 3), dtype=np.uint8)
        for number, pixels in enumerate(coarse):
            image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            image.save(class_folder / f"{number:05d}.png")
    done.touch()
    return folder


def exponent(rows: int, seconds: float, rows_before: int, seconds_before: float) -> float | None:
    """b of seconds ∝ rows^b between two measurements; None if the numbers of rows are equal."""
    if rows == rows_before:
        return None
    return math.log(seconds / seconds_before) / math.log(rows / rows_before)


def parse_classes(text: str) -> list[int]:
    """Ascending numbers of classes."""
    sizes = sorted(set(parse_counts(text, "--classes", "10,100,1000")))
    if sizes[0] < 2:
        raise InputError("--classes: a single class cannot be classified; give 2 or more")
    return sizes


def _context(arguments: argparse.Namespace, work: Path, classes: int) -> Context:
    train = make_images(work / f"images-{classes}", classes, arguments.images, seed=0)
    test = make_images(work / f"test-{classes}", classes, 2, seed=1)
    fixed: dict[str, object] = {
        "data.train": str(train),
        "data.test": str(test),
        "data.validation": None,
        "data.class_map": "new",
        "storage": str(work / "storage"),
    }
    overrides = parse_overrides(arguments.overrides)
    if conflicts := sorted(set(overrides) & set(fixed)):
        raise InputError(f"{conflicts[0]}: the benchmark sets this field; leave it out")
    (context,) = prepare_runs([load_config(arguments.recipe, SMALL | overrides | fixed)], print)
    return context


def _measure(context: Context, step: Step, before: Cost | None) -> Cost:
    """Run the step and print its row; InputError if the step is complete already."""
    if step.manifest is not None:
        raise InputError(f"--work: {step.directory.uri} is complete already; name a new folder")
    with peak_memory() as peak:
        step = run_step(context, step)
    rows, seconds = step.summary["rows"], step.summary["seconds"]
    cost = Cost(
        stage=step.stage.name,
        classes=len(context.classes),
        rows=rows,
        seconds=seconds,
        exponent=exponent(rows, seconds, before.rows, before.seconds) if before else None,
        driver_gb=peak.driver / 1e9,
        worker_gb=peak.worker / 1e9,
        written_mb=sum(info.size for info in step.directory.files().values()) / 1e6,
    )
    print_row(
        cost.stage,
        f"{cost.classes:,}",
        f"{cost.rows:,}",
        f"{cost.seconds:.1f}",
        "–" if cost.exponent is None else f"{cost.exponent:.2f}",
        f"{cost.driver_gb:.2f}",
        f"{cost.worker_gb:.2f}",
        f"{cost.written_mb:.1f}",
    )
    return cost


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Track peak memory while the block runs."""
    peak, ended, driver = Peak(), threading.Event(), psutil.Process()

    def watch() -> None:
        while True:
            peak.driver = max(peak.driver, _uss(driver))
            peak.node_disk = max(peak.node_disk, cached_bytes())
            for process in psutil.process_iter(["cmdline"]):
                if (process.info["cmdline"] or [""])[0].startswith(WORKER):
                    peak.worker = max(peak.worker, _uss(process))
            if ended.wait(INTERVAL_S):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _uss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().uss
    except psutil.Error:  # the process has just ended
        return 0
