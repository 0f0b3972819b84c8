"""`bench scale`: the whole pipeline on made images at several numbers of classes, and how its costs grow.

The generator is the recipe's, with fresh rows for the classes: what is drawn shows nothing, what it takes is
real. Memory is what a process holds for itself (USS), looked at five times a second: of this process, and of
the largest of Ray's workers on this machine.
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
from ims3_ray.pipeline.prepare import begin
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.stages.context import Context
from ims3_ray.storage.disk_cache import stored_bytes

from .figures import Figures, device_figures, origin, print_head, print_row, whole_numbers

COLUMNS = "stage | classes | rows | seconds | grows as rows^ | driver GB | largest worker GB | MB written"
SIZE = 32  # pixels a side of the images that are made
EVERY_S = 0.2
WORKER = "ray::"  # what the names of Ray's workers begin with while they work
SMALL: dict[str, object] = {  # few passes through the networks: their number is known to count in full
    "ipc": 50,
    "invert.points": 2,
    "finetune.epochs": 1,
    "sample.steps": 2,
    "evaluate.protocol": "smoke",
    "evaluate.seeds": 2,
    "evaluate.full": False,
    "evaluate.unrefined": False,
}


@dataclass
class Peak:
    """Bytes at most: held for itself by this process, or any worker of Ray, and in rows on the disk."""

    driver: int = 0
    worker: int = 0
    node_disk: int = 0


@dataclass(frozen=True)
class Cost:
    """What a stage took at one number of classes; `exponent` is of its seconds against the rows before."""

    stage: str
    classes: int
    rows: int
    seconds: float
    exponent: float | None
    driver_gb: float
    worker_gb: float
    written_mb: float


def run(arguments: argparse.Namespace, work: Path) -> Figures:
    """Print the table; gives all figures, with what they were measured on."""
    sizes, costs = _sizes(arguments.classes), []
    document: Figures = {}
    for classes in sizes:
        context = _context(arguments, work, classes)
        if not document:
            document = origin(arguments, context.machine, device_figures(context.machine))
            print_head(COLUMNS)
        before = {cost.stage: cost for cost in costs}
        costs += [_measured(context, step, before.get(step.stage.name)) for step in plan(context)]
    return document | {"images_per_class": arguments.images, "stages": [asdict(cost) for cost in costs]}


def make_images(folder: Path, classes: int, images: int, seed: int) -> Path:
    """Class folders of smooth noise, 32 pixels a side, the same for a seed; kept where they are complete."""
    done = folder / ".done"
    if done.exists():
        return folder
    draws = np.random.default_rng(seed)
    for label in range(classes):
        of_class = folder / f"class-{label:05d}"
        of_class.mkdir(parents=True, exist_ok=True)
        coarse = draws.integers(0, 256, (images, 4, 4, 3), dtype=np.uint8)
        for number, pixels in enumerate(coarse):
            picture = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            picture.save(of_class / f"{number:05d}.png")
    done.touch()
    return folder


def exponent(rows: int, seconds: float, rows_before: int, seconds_before: float) -> float | None:
    """b of seconds ∝ rows^b between two measurements; None where the rows are the same."""
    if rows == rows_before:
        return None
    return math.log(seconds / seconds_before) / math.log(rows / rows_before)


def _sizes(words: str) -> list[int]:
    sizes = whole_numbers(words, "--classes", "classes", "10,100,1000")
    if sizes[0] < 2:
        raise InputError("--classes: 1 class can't be told from others; give 2 or more")
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
    given = parse_overrides(arguments.overrides)
    if clash := sorted(set(given) & set(fixed)):
        raise InputError(f"{clash[0]}: the bench sets it; leave it out")
    (context,) = begin([load_config(arguments.recipe, SMALL | given | fixed)], print)
    return context


def _measured(context: Context, step: Step, before: Cost | None) -> Cost:
    """Run the step, which must not be complete."""
    if step.manifest is not None:
        raise InputError(f"--work: {step.directory.uri} is complete already; name a new folder")
    with watched() as peak:
        step = run_step(context, step)
    summary = step.summary
    written = sum(info.size for info in step.directory.files().values())
    rows, seconds = summary["rows"], summary["seconds"]
    grows = exponent(rows, seconds, before.rows, before.seconds) if before else None
    gigabytes = peak.driver / 1e9, peak.worker / 1e9
    cost = Cost(
        step.stage.name,
        len(context.classes),
        rows,
        seconds,
        grows,
        *gigabytes,
        written / 1e6,
    )
    print_row(
        cost.stage,
        f"{cost.classes:,}",
        f"{cost.rows:,}",
        f"{cost.seconds:.1f}",
        "–" if grows is None else f"{grows:.2f}",
        *(f"{value:.2f}" for value in gigabytes),
        f"{cost.written_mb:.1f}",
    )
    return cost


@contextmanager
def watched() -> Iterator[Peak]:
    """Memory while the block runs."""
    peak, ended, driver = Peak(), threading.Event(), psutil.Process()

    def watch() -> None:
        while True:
            peak.driver = max(peak.driver, _held(driver))
            peak.node_disk = max(peak.node_disk, stored_bytes())
            for process in psutil.process_iter(["cmdline"]):
                if (process.info["cmdline"] or [""])[0].startswith(WORKER):
                    peak.worker = max(peak.worker, _held(process))
            if ended.wait(EVERY_S):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _held(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().uss
    except psutil.Error:  # it has just ended
        return 0
