"""Train a classifier from scratch on a small set and measure its accuracy: the project's main metric.

Both sets live on the device as uint8 tensors; augmentation is batched. All randomness comes from generators
keyed by the seed, so (set, protocol, seed, kind of device) determines the accuracy.
"""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import key_seed
from ims3_ray.models.device import Numerics, keep_freed_memory, to_device

from .augment import augment, cutmix
from .inference import Device, Model, accuracy, forward_fn, numerics_for
from .protocols import Protocol
from .schedule import Budget, batch_rows, plan


@dataclass(frozen=True)
class Score:
    """Accuracies as fractions: `last` is the result; `best` used the scored images and is a diagnostic."""

    last: float
    best: float
    history: list[tuple[int, float]]
    """(step, accuracy) at every evaluation."""
    train_loss: list[tuple[int, float]]
    """(step, mean training loss since the previous evaluation)."""
    numerics: Numerics
    images: int
    """Number of training images."""


RESIDENT_BYTES = 8 * 2**30  # of images that a GPU holds during a training
WHOLE_BATCH, PASS = 64 * 32**2, 16 * 32**2  # input pixels of the largest undivided batch, and of a part
TeacherFn = Callable[[Tensor], Tensor]
"""Images (B, C, S, S), as the protocol's network sees them, to logits (B, classes)."""
EvalStream = Generator[tuple[int, float], None, Score]
"""Yields (step, accuracy) at every evaluation; returns the score."""
Labels = Int[Tensor, " _"] | Float[Tensor, "_ _"]
"""Class indices (N,), or for training images probabilities (N, classes)."""
Labelled = tuple[UInt8[Tensor, "_ 3 _ _"], Labels]
"""Images at the protocol's size, as `data.transforms.resize_and_crop` makes them, and their labels."""


def final_score(evals: EvalStream) -> Score:
    """Run a training to its end and return its score."""
    while True:
        try:
            next(evals)
        except StopIteration as end:
            return end.value


def train_with_evals(
    train: Labelled,
    scored: Labelled,
    protocol: Protocol,
    num_classes: int,
    seed: int,
    device: Device = "cpu",
    teacher: TeacherFn | None = None,
) -> EvalStream:
    """Train the protocol's network on `train`, evaluating it on `scored`; a soft protocol needs a `teacher`.

    The mean number of images per class sets the number of epochs, so that a full set trains as full sets do.
    Raises InputError if images differ from the protocol's size, labels are outside the classes, a scored
    class has no training image, or the network is too deep for the protocol's image size.
    """
    _check_sizes(train[0], scored[0], protocol)
    _check_labels(train[1], scored[1], num_classes)
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    model = protocol.build(num_classes, generator_for(seed, "weights")).to(device)
    images, labels = resident(train[0], device), train[1].to(device)
    test = resident(scored[0], device), scored[1].to(device)
    budget = budget_for(protocol, len(labels), num_classes)
    steps, eval_steps = plan(budget, len(labels), protocol.evaluations)
    numerics = numerics_for(device.type, steps)
    forward = forward_fn(model, numerics)
    history: list[tuple[int, float]] = []
    train_loss: list[tuple[int, float]] = []
    losses: list[Tensor] = []
    training = training_steps(model, forward, (images, labels), protocol, budget, seed, teacher)
    for step, loss in enumerate(training, start=1):
        losses.append(loss)
        if step in eval_steps:  # the only synchronisations with the device
            train_loss.append((step, torch.stack(losses).mean().item()))
            model.eval()
            history.append((step, accuracy(forward, *test, protocol)))
            model.train()
            losses.clear()
            yield history[-1]
    best = max(value for _, value in history)
    return Score(history[-1][1], best, history, train_loss, numerics, len(labels))


def training_steps(
    model: torch.nn.Module,
    forward: Model,
    train: Labelled,
    protocol: Protocol,
    budget: Budget,
    seed: int,
    teacher: TeacherFn | None = None,
) -> Iterator[Float[Tensor, ""]]:
    """Train the model, through `forward`, on `resident` images and labels on its device; yields each loss."""
    assert protocol.is_soft == (teacher is not None), protocol.label
    images, labels = train
    optimiser, previous = _optimiser(model, protocol, budget), 1.0
    order, views = generator_for(seed, "batches"), generator_for(seed, "augmentations")
    steps, _ = plan(budget, len(labels), 1)
    for step, rows in enumerate(batch_rows(budget, len(labels), order)):
        factor = learning_rate_factor(protocol, budget, step, steps)
        if protocol.schedule == "restart" and factor != previous:
            optimiser = _optimiser(model, protocol, budget)
        for group in optimiser.param_groups:
            group["lr"] = budget.learning_rate * factor
        previous = factor
        batch = _take(images, rows, labels.device), _take(labels, rows, labels.device)
        yield train_step(forward, optimiser, *batch, protocol, views, teacher)


def resident(images: UInt8[Tensor, "n 3 s s"], device: torch.device) -> UInt8[Tensor, "n 3 s s"]:
    """The images on the device, or on the host if they exceed RESIDENT_BYTES: ImageNet-1k has 193 GB."""
    return images.to(device) if images.nbytes <= RESIDENT_BYTES else images


def _take(values: Tensor, rows: Int[Tensor, " b"], device: torch.device) -> Tensor:
    """Rows of a tensor on the device or the host, on the device."""
    taken = values[rows] if values.device.type == "cpu" else values[to_device(rows, values.device)]
    return to_device(taken, device) if taken.device != device else taken


def _optimiser(model: torch.nn.Module, protocol: Protocol, budget: Budget) -> torch.optim.Optimizer:
    if protocol.optimiser == "adamw":
        parameters = list(model.named_parameters())
        kernels = [value for name, value in parameters if "weight" in name and value.dim() > 1]
        others = [value for name, value in parameters if not ("weight" in name and value.dim() > 1)]
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
                f"{name}: are {width}×{height} pixels, {protocol.label} needs {protocol.image_size}; "
                "scale them by ims3_ray.data.transforms.resize_and_crop"
            )


def _check_labels(train_labels: Tensor, test_labels: Tensor, num_classes: int) -> None:
    for name, labels in (("train_labels", train_labels), ("test_labels", test_labels)):
        if len(labels) == 0:
            raise InputError(f"{name}: the set has no images")
        low, high = (0, labels.shape[1] - 1) if labels.dim() == 2 else (int(labels.min()), int(labels.max()))
        if low < 0 or high >= num_classes:
            span = f"labels from {low} to {high} do not fit {num_classes} classes"
            raise InputError(f"{name}: {span}; give 0 to {num_classes - 1}")
    present = train_labels.sum(dim=0).nonzero().flatten() if train_labels.dim() == 2 else train_labels
    if missing := sorted(set(test_labels.tolist()) - set(present.tolist())):
        raise InputError(
            f"train_labels: no training image for class {first_few(missing)}, which the scored images have"
        )


def generator_for(seed: int, purpose: str, device: Device = "cpu") -> torch.Generator:
    """A separate generator per purpose: a longer run or another network shifts no other draw."""
    return torch.Generator(device).manual_seed(key_seed("evaluation", seed, purpose))


def budget_for(protocol: Protocol, num_images: int, num_classes: int) -> Budget:
    """The protocol's budget for a set of `num_images` images in total."""
    return protocol.budget(max(1, round(num_images / num_classes)), num_classes)


def learning_rate_factor(protocol: Protocol, budget: Budget, step: int, steps: int) -> float:
    """Factor on the learning rate at `step`, counted from 0, out of `steps`."""
    if protocol.schedule == "cosine":
        warmup = protocol.warmup * steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    units = budget.units
    unit = step * units // steps  # the epoch, or the step
    if protocol.schedule == "half_cosine":
        return 0.5 * (1 + math.cos(math.pi * unit / units / 2))
    if protocol.schedule == "restart":
        return 0.1 if unit >= (units - 1) // 2 + 2 else 1.0
    return 0.2 ** sum(unit >= milestone for milestone in (2 * units // 3, 5 * units // 6))


def train_step(
    model: Model,
    optimiser: torch.optim.Optimizer,
    images: UInt8[Tensor, "b 3 s s"],
    labels: Labels,
    protocol: Protocol,
    generator: torch.Generator,
    teacher: TeacherFn | None = None,
) -> Float[Tensor, ""]:
    """One optimiser step on one batch; returns its loss, still on the device."""
    x, partner_labels, own_share = augment(images, protocol, generator), labels, 1.0
    if protocol.cutmix > 0:
        x, partner_labels, own_share = cutmix(x, labels, protocol.cutmix, generator)

    def loss_of(rows: slice) -> Tensor:
        logits = model(x[rows])
        if teacher is not None and protocol.temperature is not None:
            return soft_loss(logits, teacher(x[rows]), protocol.temperature)
        loss = functional.cross_entropy(logits, labels[rows])
        if protocol.cutmix == 0:
            return loss
        return own_share * loss + (1 - own_share) * functional.cross_entropy(logits, partner_labels[rows])

    optimiser.zero_grad(set_to_none=True)
    losses: list[Tensor] = []
    for rows in passes(len(x), protocol, x.device.type):
        loss = loss_of(rows) * (len(x[rows]) / len(x))
        loss.backward()
        losses.append(loss.detach())
    optimiser.step()
    return torch.stack(losses).sum()


def passes(count: int, protocol: Protocol, kind: str) -> list[slice]:
    """The parts of a batch that pass through the network one by one: several for a large batch on a CPU.

    Small maps stay in the cache and in freed memory: 1.9 times the speed for 256 images of 32 pixels.
    Networks with batch norms need the statistics of the whole batch.
    """
    size, pixels = count, protocol.image_size**2
    if kind == "cpu" and count * pixels > WHOLE_BATCH and not protocol.needs_whole_batch:
        size = max(1, PASS // pixels)
    return [slice(start, start + size) for start in range(0, count, size)]


def soft_loss(
    student: Float[Tensor, "b classes"], teacher: Float[Tensor, "b classes"], temperature: float
) -> Float[Tensor, ""]:
    """KL divergence of the student's distribution from the teacher's at `temperature`, mean over b.

    Hinton et al. 2015, without their factor of temperature squared, as published (Sun et al. 2024).
    """
    ours, theirs = (functional.log_softmax(x / temperature, dim=1) for x in (student, teacher))
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
