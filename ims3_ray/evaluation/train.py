"""Train a classifier from scratch on a small set and score it: the number that this project is about.

Both sets live on the device as uint8 tensors; augmentation is batched. All randomness comes from generators
keyed by the seed, so one (set, protocol, seed, kind of device) gives one number.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import key_seed
from ims3_ray.models.device import Numerics, keep_freed_memory

from .augment import augment, cutmix
from .inference import forward_in, numerics_for
from .rules import Budget, Protocol
from .scoring import accuracy, confidences

Device = str | torch.device


@dataclass(frozen=True)
class Score:
    """Accuracies, as fractions: `last` is the result; `best` looked at the scored images, a diagnostic."""

    last: float
    best: float
    history: list[tuple[int, float]]
    """(step, accuracy) at every evaluation."""
    train_loss: list[tuple[int, float]]
    """(step, mean training loss since the evaluation before)."""
    seconds: float
    numerics: Numerics
    """What the network ran in: kind of device, precision, compilation."""
    images: int
    """That it was trained on."""
    confidences: tuple[np.ndarray, ...] = ()
    """Of each image that it was asked about at the end, by set (`membership.confidence`)."""


Answer = Callable[[Tensor], Tensor]
"""A teacher: images (B, C, S, S) as the protocol's network sees them to logits (B, classes)."""
Looks = Generator[tuple[int, float], None, Score]
Labelled = tuple[UInt8[Tensor, "_ 3 _ _"], Int[Tensor, " _"]]
"""Images at the protocol's size (`data.pixels.resize_and_crop` brings them to it) and their labels."""


@dataclass(frozen=True)
class Beside:
    """What a training has beside its images."""

    teacher: Answer | None = None
    """Whose answers a soft protocol's network learns; on the device."""
    asked: Sequence[Labelled] = ()
    """Sets that the network is asked about at the end."""


ALONE = Beside()


def score_of(training: Looks) -> Score:
    """The score at the end of a training that nobody looks into."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def train_with_evals(
    train: Labelled,
    scored: Labelled,
    protocol: Protocol,
    num_classes: int,
    seed: int,
    device: Device = "cpu",
    beside: Beside = ALONE,
) -> Looks:
    """Train the protocol's network on the first set: (step, accuracy) at looks at the second, then a Score.

    The set's mean number of images a class sets the number of epochs, so that a full set trains as a full set
    does. Raises
    InputError for images of another size than the protocol's, labels outside the classes, a scored class
    without training images, and a network too deep for the protocol's image size.
    """
    _check_sizes(train[0], scored[0], protocol)
    _check_labels(train[1], scored[1], num_classes)
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    model = protocol.build(num_classes, generator_of(seed, "weights")).to(device)
    (images, labels), test = ((x.to(device), of_set.to(device).long()) for x, of_set in (train, scored))
    budget = budget_of(protocol, len(labels), num_classes)
    steps, marks = plan(budget, len(labels), protocol.evaluations)
    numerics = numerics_for(device.type, steps)
    forward = forward_in(model, numerics)
    history: list[tuple[int, float]] = []
    train_loss: list[tuple[int, float]] = []
    losses: list[Tensor] = []
    start = time.perf_counter()
    training = training_steps(model, forward, (images, labels), protocol, budget, seed, beside.teacher)
    for step, loss in enumerate(training, start=1):
        losses.append(loss)
        if step in marks:  # the only times that the device is waited for
            train_loss.append((step, torch.stack(losses).mean().item()))
            model.eval()
            history.append((step, accuracy(forward, *test, protocol)))
            model.train()
            losses.clear()
            yield history[-1]
    best = max(value for _, value in history)
    seconds = time.perf_counter() - start
    model.eval()
    sure = tuple(confidences(forward, *of_set, protocol, device) for of_set in beside.asked)
    return Score(history[-1][1], best, history, train_loss, seconds, numerics, len(labels), sure)


def training_steps(
    model: torch.nn.Module,
    forward: Callable[[Tensor], Tensor],
    train: Labelled,
    protocol: Protocol,
    budget: Budget,
    seed: int,
    teacher: Answer | None = None,
) -> Iterator[Float[Tensor, ""]]:
    """Train the model, by its `forward`, on images on its device: the loss of every step, once it is done."""
    assert protocol.is_soft == (teacher is not None), protocol.label
    images, labels = train
    optimiser, previous = _optimiser(model, protocol, budget), 1.0
    order, views = generator_of(seed, "batches", labels.device), generator_of(seed, "augmentations")
    steps, _ = plan(budget, len(labels), 1)
    for step, rows in enumerate(batch_rows(budget, len(labels), order)):
        factor = rate(protocol, budget, step, steps)
        if protocol.schedule == "restart" and factor != previous:
            optimiser = _optimiser(model, protocol, budget)
        for group in optimiser.param_groups:
            group["lr"] = budget.learning_rate * factor
        previous = factor
        yield train_step(forward, optimiser, images[rows], labels[rows], protocol, views, teacher)


def _optimiser(model: torch.nn.Module, protocol: Protocol, budget: Budget) -> torch.optim.Optimizer:
    if protocol.optimiser == "adamw":
        named = list(model.named_parameters())
        kernels = [value for name, value in named if "weight" in name and value.dim() > 1]
        others = [value for name, value in named if not ("weight" in name and value.dim() > 1)]
        groups = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=budget.learning_rate, weight_decay=budget.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=budget.learning_rate,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=budget.weight_decay,
    )


def _check_sizes(train_images: Tensor, test_images: Tensor, protocol: Protocol) -> None:
    for name, images in (("train_images", train_images), ("test_images", test_images)):
        height, width = images.shape[2:]
        if (height, width) != (protocol.image_size, protocol.image_size):
            raise InputError(
                f"{name}: are {width}×{height} pixels, {protocol.label} sees {protocol.image_size}; "
                "scale them by ims3_ray.data.transforms.resize_and_crop"
            )


def _check_labels(train_labels: Tensor, test_labels: Tensor, num_classes: int) -> None:
    for name, labels in (("train_labels", train_labels), ("test_labels", test_labels)):
        if len(labels) == 0:
            raise InputError(f"{name}: the set has no images")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            span = f"labels from {low} to {high} do not fit {num_classes} classes"
            raise InputError(f"{name}: {span}; give 0 to {num_classes - 1}")
    if missing := sorted(set(test_labels.tolist()) - set(train_labels.tolist())):
        raise InputError(
            f"train_labels: no training image for class {first_few(missing)}, which the scored images have"
        )


def generator_of(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each purpose: a longer run or another network shifts no other draw."""
    return torch.Generator(device).manual_seed(key_seed("evaluation", seed, purpose))


def budget_of(protocol: Protocol, num_images: int, num_classes: int) -> Budget:
    """The protocol's budget for a set of so many images in all."""
    return protocol.budget(max(1, round(num_images / num_classes)), num_classes)


def plan(budget: Budget, num_images: int, evaluations: int) -> tuple[int, set[int]]:
    """Number of optimiser steps, and the steps after which to score: evenly spaced, the last one included."""
    units, steps_per_unit = budget.units, math.ceil(num_images / budget.batch_size) if budget.epochs else 1
    marks = {math.ceil(units * (index + 1) / evaluations) * steps_per_unit for index in range(evaluations)}
    return units * steps_per_unit, marks


def batch_rows(budget: Budget, num_images: int, generator: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """Rows of each batch: epochs of shuffled images, cut into batches.

    By epochs the last batch of each is short. By steps epochs follow each other without a seam, so that every
    batch is full however small the set is.
    """

    def shuffled() -> Tensor:
        return torch.randperm(num_images, generator=generator, device=generator.device)

    if budget.epochs:
        for _ in range(budget.epochs):
            yield from shuffled().split(budget.batch_size)
        return
    waiting = shuffled()
    for _ in range(budget.units):
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
    units = budget.units
    unit = step * units // steps  # the epoch, where there are epochs
    if protocol.schedule == "half_cosine":
        return 0.5 * (1 + math.cos(math.pi * unit / units / 2))
    if protocol.schedule == "restart":
        return 0.1 if unit >= (units - 1) // 2 + 2 else 1.0
    return 0.2 ** sum(unit >= milestone for milestone in (2 * units // 3, 5 * units // 6))


def train_step(
    model: Callable[[Tensor], Tensor],
    optimiser: torch.optim.Optimizer,
    images: UInt8[Tensor, "b 3 s s"],
    labels: Int[Tensor, " b"],
    protocol: Protocol,
    generator: torch.Generator,
    teacher: Answer | None = None,
) -> Float[Tensor, ""]:
    """One optimiser step on one batch; gives its loss, still on the device."""
    x, partner_labels, own_share = augment(images, protocol, generator), labels, None
    if protocol.cutmix > 0:
        x, partner_labels, own_share = cutmix(x, labels, protocol.cutmix, generator)
    logits = model(x)
    if teacher is not None and protocol.temperature is not None:
        loss = soft_loss(logits, teacher(x), protocol.temperature)
    elif own_share is not None:
        loss = own_share * functional.cross_entropy(logits, labels)
        loss = loss + (1 - own_share) * functional.cross_entropy(logits, partner_labels)
    else:
        loss = functional.cross_entropy(logits, labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


def soft_loss(
    logits: Float[Tensor, "b classes"], answers: Float[Tensor, "b classes"], temperature: float
) -> Float[Tensor, ""]:
    """KL divergence of the network's distribution from the teacher's, both at `temperature`; mean over b.

    Hinton et al. 2015, without their factor of temperature squared, as published (Sun et al. 2024).
    """
    ours, theirs = (functional.log_softmax(x / temperature, dim=1) for x in (logits, answers))
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
