"""Training an evaluation classifier: this project's path beside the plain one, both from class folders to an
accuracy.
"""

import io
import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from PIL import Image
from scipy import stats

from ims3_ray.cluster.machine import Machine
from ims3_ray.data.digits import PREFIX, materialise
from ims3_ray.data.reading import BatchReader
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.evaluation.statistics import summary
from ims3_ray.evaluation.train import Score, train_and_score
from ims3_ray.models import classifiers
from ims3_ray.models.device import prepare_device
from ims3_ray.stages.costs import BACKWARD, count_operations
from ims3_ray.storage.artifacts import Directory, open_directory

from .classifiers_plain import train_plainly
from .sides import Side

# pixels a side of the files where a protocol wants more than the digits' 28, as distilled images have
LARGE = 256
READ_AT_ONCE = 256


@dataclass(frozen=True)
class Task:
    """What both sides are given: folders `train` and `scored` below `folder`, with the same class folders in
    them.
    """

    folder: Path
    protocol: Protocol
    device: str
    loader_workers: int  # of the plain side
    train_images: int
    scored_images: int
    num_classes: int


def digits_task(
    folder: Path, protocol: Protocol, machine: Machine, *, ipc: int, scored: int | None, loader_workers: int
) -> Task:
    """Digits below `folder`: `ipc` a class to train on, and `scored` a class (all where None) of the
    protocol's split.
    """
    storage = open_directory(str(folder / "storage"))
    size = LARGE if protocol.image_size > 32 else None
    counts = {}
    for name, split, per_class in (("train", "train", ipc), ("scored", protocol.split, scored)):
        source = materialise(PREFIX + split, storage)
        chosen = _of_each_class(sorted(source.files()), per_class)
        for path in chosen:
            _copy(source, path, folder / name / path, size)
        counts[name] = len(chosen)
    num_classes = len({path.split("/")[0] for path in chosen})
    return Task(
        folder, protocol, machine.device, loader_workers, counts["train"], counts["scored"], num_classes
    )


def _of_each_class(paths: list[str], per_class: int | None) -> list[str]:
    """The first `per_class` of the sorted paths `class/file` of every class."""
    classes = itertools.groupby(paths, key=lambda path: path.split("/")[0])
    return [path for _, of_class in classes for path in itertools.islice(of_class, per_class)]


def _copy(source: Directory, path: str, target: Path, size: int | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(source.read(path))).convert("RGB")
    (image if size is None else image.resize((size, size))).save(target)


def sides(task: Task) -> list[Side]:
    """The sides "own" and "plain"; a call is one whole training with its looks at the scored images."""
    shared = {
        "batch_size": task.protocol.batch_size,
        "images": trained_images(task),
        "operations": _operations(task),
    }
    loader = f"ImageFolder, PIL transforms, DataLoader with {task.loader_workers} workers, torch's own modules, fp32"
    return [
        Side(
            "own",
            "images decoded once, augmented by batches",
            OwnTraining,
            {"task": task},
            batch_field="protocol",
            **shared,
        ),
        Side("plain", loader, PlainTraining, {"task": task}, batch_field="protocol", **shared),
    ]


def trained_images(task: Task) -> int:
    """Images that a training sees, each as often as it is seen."""
    budget = task.protocol.budget(max(1, round(task.train_images / task.num_classes)), task.num_classes)
    if budget.steps is not None:
        return budget.steps * budget.batch_size
    return budget.epochs * task.train_images


def _operations(task: Task) -> float:
    """Operations of a trained image: the network forward, and backward at twice that; looks are not counted."""
    size = task.protocol.image_size
    model = classifiers.build(
        task.protocol.network, task.num_classes, size, None, width=task.protocol.width
    ).to("meta")
    return BACKWARD * count_operations(model, torch.zeros(1, 3, size, size, device="meta"))


class OwnTraining:
    """Trains as the evaluate stage does, reading the folders each time; a call gives the accuracy."""

    def __init__(self, task: Task, seed: int = 0):
        self._task, self._seed = task, seed
        self._device = prepare_device(task.device)

    def __call__(self) -> float:
        task = self._task
        train, scored = (_read(task.folder / name, task.protocol.image_size) for name in ("train", "scored"))
        score: Score = train_and_score(
            *train,
            *scored,
            protocol=task.protocol,
            num_classes=task.num_classes,
            seed=self._seed,
            device=self._device,
        )
        return score.last


def _read(folder: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, 3, size, size) uint8 and labels (N,) of a folder of class folders."""
    classes = {name: label for label, name in enumerate(sorted(p.name for p in folder.iterdir()))}
    paths = [str(p.relative_to(folder)) for p in sorted(folder.glob("*/*"))]
    labels = [classes[path.split("/")[0]] for path in paths]
    pixels, _, bad = BatchReader(open_directory(str(folder)), size)(
        {"paths": paths, "ids": paths, "labels": labels}
    )
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
            task.folder / "train", task.folder / "scored", task.protocol,
            workers=task.loader_workers, seed=self._seed, device=task.device,
        )  # fmt: skip


def accuracies(task: Task, machine: Machine, seeds: int) -> dict[str, Any]:
    """Summary of either side's accuracy over as many seeds, and of the difference of their means.

    `difference_interval` is the half width of its 95 % interval (Welch's t): within it the sides are the
    same.
    """
    train = ray.remote(**machine.actor_resources)(lambda kind, seed: kind(task, seed)())
    kinds = {"own": OwnTraining, "plain": PlainTraining}
    values = {
        name: ray.get([train.remote(kind, seed) for seed in range(seeds)]) for name, kind in kinds.items()
    }
    found: dict[str, Any] = {
        name: asdict(summary(of_side)) | {"values": of_side} for name, of_side in values.items()
    }
    low, high = stats.ttest_ind(values["own"], values["plain"], equal_var=False).confidence_interval(0.95)
    found["difference"] = found["own"]["mean"] - found["plain"]["mean"]
    found["difference_interval"] = float(high - low) / 2
    return found
