"""`bench evaluate`: training an evaluation classifier, this project's path beside a DataLoader with PIL
transforms, both from class folders to an accuracy.
"""

import argparse
import io
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
import torch
from PIL import Image
from scipy import stats

from ims3_ray.cluster.resources import Machine, check_device, connect, find_machine
from ims3_ray.config.base import DeviceKind
from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Selecting
from ims3_ray.data.digits import PREFIX, materialise
from ims3_ray.data.loader import BatchReader
from ims3_ray.data.transforms import resize_and_crop
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import protocol
from ims3_ray.evaluation.rules import Protocol
from ims3_ray.evaluation.statistics import summary
from ims3_ray.evaluation.train import score_of, train_with_evals
from ims3_ray.models.device import prepare_device
from ims3_ray.stages.cost_model import BACKWARD, count_operations
from ims3_ray.storage.artifacts import Directory, open_directory

from .classifiers_plain import train_plainly
from .figures import Figures, as_percent, device_figures, origin, print_head, print_row
from .sides import Side, compare

COLUMNS = "side | images/s | ratio | s a training | GFLOP an image | matrix share | peak GB | settings"
LEAST = {"ipc": 1, "steps": 1, "scored": 1, "loader_workers": 0, "repetitions": 1}
# pixels a side of the files where a protocol wants more than the digits' 28, as distilled images have
LARGE = 256


@dataclass(frozen=True)
class Task:
    """What both sides are given: folders `train` and `scored` below `folder`, with the same class folders."""

    folder: Path
    protocol: Protocol
    device: DeviceKind
    loader_workers: int  # of the plain side
    train_images: int
    scored_images: int
    num_classes: int


def run(arguments: argparse.Namespace, work: Path) -> Figures:
    """Print the table; gives all figures, with what they were measured on."""
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: {value} is too few; give {least} or more")
    if arguments.accuracy == 1 or arguments.accuracy < 0:
        raise InputError(f"--accuracy: {arguments.accuracy} seeds give no interval; give 2 or more")
    config, rules = (
        load_settings(Selecting, parse_overrides(arguments.overrides)),
        protocol(arguments.protocol),
    )
    check_device(config.workers)
    if rules.is_soft:
        raise InputError(
            f"--protocol: {rules.name} needs a teacher, and hard labels are measured; name another"
        )
    if arguments.steps:
        rules = rules.model_copy(update={"steps": arguments.steps, "evaluations": 1})
    connect()
    machine = find_machine(config.workers)
    device = device_figures(machine)
    task = digits_task(arguments, work, rules, machine)
    views = trained_images(task)
    told = f"{task.train_images} images, {views} views, {task.scored_images} scored x {rules.evaluations}"
    print(f"protocol {rules.label}: {told}", flush=True)
    measured = compare(
        _sides(task), machine, device, repetitions=arguments.repetitions, seconds=arguments.seconds
    )
    print_head(COLUMNS)
    for m in measured:
        rates = f"{m.images_per_s:.4g}", f"{m.ratio:.2f}", f"{views / m.images_per_s:.1f}"
        work_done = f"{m.operations_per_image / 1e9:.4g}", as_percent(m.matrix_share)
        print_row(m.name, *rates, *work_done, f"{m.peak_memory_bytes / 1e9:.2f}", m.settings)
    document = origin(arguments, machine, device) | {
        "protocol": rules.label,
        "rules": rules.model_dump(),
        "train_images": task.train_images,
        "scored_images": task.scored_images,
        "loader_workers": task.loader_workers,
        "sides": [asdict(m) for m in measured],
    }
    return document | (
        {"accuracy": _accuracies(task, machine, arguments.accuracy)} if arguments.accuracy else {}
    )


def digits_task(arguments: argparse.Namespace, folder: Path, rules: Protocol, machine: Machine) -> Task:
    """Digits below `folder`: --ipc a class to train on, --scored a class (or all) of the protocol's split."""
    storage = open_directory(str(folder / "storage"))
    size = LARGE if rules.image_size > 32 else None
    paths: dict[str, list[str]] = {}
    for name, split, per_class in (
        ("train", "train", arguments.ipc),
        ("scored", rules.split, arguments.scored),
    ):
        source = materialise(PREFIX + split, storage)
        by_class = itertools.groupby(sorted(source.files()), key=lambda path: path.split("/")[0])
        paths[name] = [path for _, of_class in by_class for path in itertools.islice(of_class, per_class)]
        for path in paths[name]:
            _copy(source, path, folder / name / path, size)
    num_classes = len({path.split("/")[0] for path in paths["scored"]})
    counts = len(paths["train"]), len(paths["scored"])
    return Task(folder, rules, machine.device, arguments.loader_workers, *counts, num_classes)


def _copy(source: Directory, path: str, target: Path, size: int | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(source.read(path))).convert("RGB")
    (image if size is None else image.resize((size, size))).save(target)


def _sides(task: Task) -> list[Side]:
    """A call is one whole training with its looks at the scored images."""
    loader = (
        f"ImageFolder, PIL transforms, DataLoader with {task.loader_workers} workers, torch's modules, fp32"
    )
    settings = {"own": "images decoded once, augmented by batches", "plain": loader}
    size = task.protocol.image_size
    model = task.protocol.build(task.num_classes).to("meta")
    image = torch.zeros(1, 3, size, size, device="meta")
    return [
        Side(
            name=name,
            settings=settings[name],
            build=build,
            arguments={"task": task},
            batch_size=task.protocol.batch_size,
            images=trained_images(task),
            operations=BACKWARD * count_operations(model, image),  # looks are not counted
            batch_field="protocol",
        )
        for name, build in KINDS.items()
    ]


def trained_images(task: Task) -> int:
    """Images that a training sees, each as often as it is seen."""
    budget = task.protocol.budget(max(1, round(task.train_images / task.num_classes)), task.num_classes)
    if budget.steps is not None:
        return budget.steps * budget.batch_size
    assert budget.epochs is not None, budget
    return budget.epochs * task.train_images


class OwnTraining:
    """Trains as the evaluate stage does, reading the folders each time; a call gives the accuracy."""

    def __init__(self, task: Task, seed: int = 0):
        self._task, self._seed = task, seed
        self._device = prepare_device(task.device)

    def __call__(self) -> float:
        task = self._task
        train, scored = (_read(task.folder / name, task.protocol.image_size) for name in ("train", "scored"))
        how = task.protocol, task.num_classes, self._seed, self._device
        return score_of(train_with_evals(train, scored, *how)).last


def _read(folder: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, 3, size, size) uint8 and labels (N,) of a folder of class folders."""
    classes = {name: label for label, name in enumerate(sorted(p.name for p in folder.iterdir()))}
    paths = [str(p.relative_to(folder)) for p in sorted(folder.glob("*/*"))]
    labels = [classes[path.split("/")[0]] for path in paths]
    read = BatchReader(open_directory(str(folder)), size, resize_and_crop)
    pixels, _, bad = read({"paths": paths, "ids": paths, "labels": labels})
    assert not bad, bad  # written by this bench
    return torch.from_numpy(pixels), torch.tensor(labels)


class PlainTraining:
    """Trains the plain way; a call gives the accuracy."""

    def __init__(self, task: Task, seed: int = 0):
        self._task, self._seed = task, seed
        if task.device == "cpu":
            torch.set_num_threads(1)  # as the own side

    def __call__(self) -> float:
        task = self._task
        return train_plainly(
            task.folder / "train",
            task.folder / "scored",
            task.protocol,
            workers=task.loader_workers,
            seed=self._seed,
            device=task.device,
        )


KINDS = {"own": OwnTraining, "plain": PlainTraining}


def _accuracies(task: Task, machine: Machine, seeds: int) -> Figures:
    """Summary of either side's accuracy over as many seeds, and of the difference of their means.

    `difference_interval` is half its 95 % interval (Welch's t): within it the sides are the same.
    """

    def accuracy(kind: Callable[[Task, int], Callable[[], float]], seed: int) -> float:
        return kind(task, seed)()

    train = ray.remote(**machine.actor_resources)(accuracy)
    values: dict[str, list[float]] = {
        name: ray.get([train.remote(kind, seed) for seed in range(seeds)]) for name, kind in KINDS.items()
    }
    own, plain = (summary(of_side) for of_side in values.values())
    low, high = stats.ttest_ind(*values.values(), equal_var=False).confidence_interval(0.95)
    apart, interval = own.mean - plain.mean, float(high - low) / 2
    sides = [
        f"{name} {100 * side.mean:.2f} ± {100 * (side.interval or 0):.2f} %"
        for name, side in (("own", own), ("plain", plain))
    ]
    difference = f"apart by {100 * apart:+.2f} ± {100 * interval:.2f} points"
    print(f"accuracy over {seeds} seeds: {', '.join(sides)}; {difference} (95 %)")
    return {
        "own": asdict(own) | {"values": values["own"]},
        "plain": asdict(plain) | {"values": values["plain"]},
        "difference": apart,
        "difference_interval": interval,
    }
