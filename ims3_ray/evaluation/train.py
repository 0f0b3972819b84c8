"""Train a classifier from scratch on a small set and score it: the number that this project is about.

The training set and the scored images live on the device as uint8 tensors; augmentation is batched. All
randomness comes from generators keyed by the seed, so one (set, protocol, seed, kind of device) gives one
number.
"""

import collections.abc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from ims3_ray.errors import InputError
from ims3_ray.method.keys import key_seed
from ims3_ray.models.classifiers import build
from ims3_ray.models.device import Numerics, keep_freed_memory

from .augment import augment, cutmix, normalise
from .forward import forward_in, numerics_for
from .protocols import Budget, Protocol

SCORING_BATCH = 128  # images a forward pass when scoring; changes no result, larger ones are slower on a CPU


@dataclass(frozen=True)
class Score:
    """Accuracies are fractions of the scored images. `last` is the result; `best` looked at them, a
    diagnostic only.
    """

    last: float
    best: float
    history: list[tuple[int, float]]
    """(step, accuracy) at every evaluation."""
    train_loss: list[tuple[int, float]]
    """(step, mean training loss since the evaluation before)."""
    seconds: float
    numerics: Numerics
    """What the network ran in: kind of device, precision, compilation."""


Looks = collections.abc.Generator[tuple[int, float], None, Score]


def train_and_score(*sets: Tensor, **options: Any) -> Score:
    """Train a protocol's network on one set and score it on another: `training_in_looks`, which see, to its
    end.
    """
    training = training_in_looks(*sets, **options)
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def training_in_looks(
    train_images: UInt8[Tensor, "n 3 h w"],
    train_labels: Int[Tensor, " n"],
    test_images: UInt8[Tensor, "m 3 hm wm"],
    test_labels: Int[Tensor, " m"],
    *,
    protocol: Protocol,
    num_classes: int,
    seed: int,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Looks:
    """Train the protocol's network on the first set; gives (step, accuracy) at every look at the second, and
    ends in a Score.

    The set's mean number of images a class sets the number of epochs, so that a full set trains as a full set
    does. `progress(step, steps)` is called after every step. Raises InputError for labels outside the
    classes, a scored class without training images, and a network too deep for the protocol's image size.
    """
    _check_labels(train_labels, test_labels, num_classes)
    device, size = torch.device(device), protocol.image_size
    if device.type == "cpu":
        keep_freed_memory()
    model = build(protocol.network, num_classes, size, _generator(seed, "weights"), width=protocol.width).to(
        device
    )
    budget = protocol.budget(max(1, round(len(train_labels) / num_classes)), num_classes)
    optimiser = _optimiser(model, protocol, budget)
    images, labels = fit_to(train_images.to(device), size), train_labels.to(device).long()
    scored = fit_to(test_images.to(device), size), test_labels.to(device).long()
    order, views = _generator(seed, "batches", device), _generator(seed, "augmentations", device)
    steps, marks = plan(budget, len(labels), protocol.evaluations)
    numerics = numerics_for(device.type, steps)
    forward = forward_in(model, numerics)
    history, train_loss, losses = [], [], []
    start = time.perf_counter()
    for step, rows in enumerate(batch_rows(budget, len(labels), order), start=1):
        for group in optimiser.param_groups:
            group["lr"] = budget.learning_rate * rate(protocol, budget, step - 1, steps)
        losses.append(train_step(forward, optimiser, images[rows], labels[rows], protocol, views))
        if step in marks:  # the only times that the device is waited for
            train_loss.append((step, torch.stack(losses).mean().item()))
            history.append((step, accuracy(forward, *scored, protocol)))
            losses.clear()
            yield history[-1]
        if progress is not None:
            progress(step, steps)
    best = max(value for _, value in history)
    return Score(history[-1][1], best, history, train_loss, time.perf_counter() - start, numerics)


def _optimiser(model: torch.nn.Module, protocol: Protocol, budget: Budget) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(),
        lr=budget.learning_rate,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=budget.weight_decay,
    )


def _check_labels(train_labels: Tensor, test_labels: Tensor, num_classes: int) -> None:
    for name, labels in (("train_labels", train_labels), ("test_labels", test_labels)):
        if len(labels) == 0:
            raise InputError(f"{name}: the set has no images")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise InputError(
                f"{name}: labels from {low} to {high} do not fit {num_classes} classes; give 0 to {num_classes - 1}"
            )
    missing = sorted(set(test_labels.tolist()) - set(train_labels.tolist()))
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise InputError(f"train_labels: no training image for class {shown}, which the scored images have")


def _generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> Generator:
    """A generator of its own for each purpose, so that a longer run or another network shifts no other draw."""
    return Generator(device).manual_seed(key_seed("evaluation", seed, purpose))


@torch.no_grad()
def fit_to(images: UInt8[Tensor, "n 3 h w"], size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Resize the shorter side to `size` (bilinear, antialiased) and crop the centre; unchanged where it fits."""
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    height, width = max(size, int(height * scale)), max(size, int(width * scale))
    top, left = round((height - size) / 2), round((width - size) / 2)
    parts = []
    for part in images.split(SCORING_BATCH):  # floats of a whole test set would need four times its memory
        x = F.interpolate(
            part.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
        )
        parts.append(x.round().clamp(0, 255).to(torch.uint8)[:, :, top : top + size, left : left + size])
    return torch.cat(parts)


def plan(budget: Budget, num_images: int, evaluations: int) -> tuple[int, set[int]]:
    """Number of optimiser steps, and the steps after which to score: evenly spaced, the last one included."""
    if budget.steps is not None:
        units, steps_per_unit = budget.steps, 1
    else:
        units, steps_per_unit = budget.epochs, math.ceil(num_images / budget.batch_size)
    marks = {math.ceil(units * (index + 1) / evaluations) * steps_per_unit for index in range(evaluations)}
    return units * steps_per_unit, marks


def batch_rows(budget: Budget, num_images: int, generator: Generator) -> Iterator[Int[Tensor, " b"]]:
    """Rows of each batch: epochs of shuffled images, cut into batches.

    By epochs the last batch of each is short. By steps epochs follow each other without a seam, so that every
    batch is full however small the set is.
    """

    def shuffled() -> Tensor:
        return torch.randperm(num_images, generator=generator, device=generator.device)

    if budget.steps is None:
        for _ in range(budget.epochs):
            yield from shuffled().split(budget.batch_size)
        return
    waiting = shuffled()
    for _ in range(budget.steps):
        while len(waiting) < budget.batch_size:
            waiting = torch.cat((waiting, shuffled()))
        yield waiting[: budget.batch_size]
        waiting = waiting[budget.batch_size :]


def rate(protocol: Protocol, budget: Budget, step: int, steps: int) -> float:
    """Factor on the learning rate at this step, counted from 0."""
    if protocol.schedule == "cosine":
        warmup = protocol.warmup * steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    units = budget.epochs or budget.steps
    unit = step * units // steps  # the epoch, where there are epochs
    return 0.2 ** sum(unit >= milestone for milestone in (2 * units // 3, 5 * units // 6))


def train_step(
    model: Callable[[Tensor], Tensor],
    optimiser: torch.optim.Optimizer,
    images: UInt8[Tensor, "b 3 s s"],
    labels: Int[Tensor, " b"],
    protocol: Protocol,
    generator: Generator,
) -> Float[Tensor, ""]:
    """One optimiser step on one batch; gives its loss, still on the device."""
    x = augment(images, protocol, generator)
    if protocol.cutmix > 0:
        x, partner_labels, own_share = cutmix(x, labels, protocol.cutmix, generator)
        logits = model(x)
        loss = own_share * F.cross_entropy(logits, labels)
        loss = loss + (1 - own_share) * F.cross_entropy(logits, partner_labels)
    else:
        loss = F.cross_entropy(model(x), labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


@torch.no_grad()
def accuracy(
    model: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "m 3 s s"],
    labels: Int[Tensor, " m"],
    protocol: Protocol,
) -> float:
    """Share of the images that the model labels right."""
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    for batch, truth in zip(images.split(SCORING_BATCH), labels.split(SCORING_BATCH), strict=True):
        correct += (model(normalise(batch.float() / 255, protocol)).argmax(dim=1) == truth).sum()
    return correct.item() / len(labels)
