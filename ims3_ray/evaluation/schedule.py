"""Length and batches of a training: epochs or steps by the set's size, evaluations, and shuffled rows."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ims3_ray.errors import InputError

# (maximum images per class, epochs); EPOCHS_BEYOND for larger sets
EPOCHS_BY_IPC = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
EPOCHS_BEYOND = 300


class Budget(BaseModel):
    """Training length and speed for a set of one size, in epochs or in steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int | None
    steps: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float

    @property
    def units(self) -> int:
        """Number of epochs, or of steps."""
        return self.epochs or self.steps or 0


def epochs_for(ipc: int, num_classes: int) -> int:
    """Epochs by images per class (Kim et al. 2022); for 100 classes two thirds, floored to a hundred."""
    if ipc < 1:
        raise InputError(f"ipc: a set needs at least 1 image per class, not {ipc}")
    epochs = next((epochs for limit, epochs in EPOCHS_BY_IPC if ipc <= limit), EPOCHS_BEYOND)
    return epochs * 2 // 3 // 100 * 100 if num_classes == 100 else epochs


def plan(budget: Budget, num_images: int, evaluations: int) -> tuple[int, set[int]]:
    """Number of optimiser steps, and the evenly spaced steps after which to evaluate, the last included."""
    units, steps_per_unit = budget.units, math.ceil(num_images / budget.batch_size) if budget.epochs else 1
    eval_steps = {
        math.ceil(units * (index + 1) / evaluations) * steps_per_unit for index in range(evaluations)
    }
    return units * steps_per_unit, eval_steps


def batch_rows(budget: Budget, num_images: int, generator: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """Image indices of each batch, from shuffled epochs.

    With `budget.epochs` the last batch of each epoch is short. With `budget.steps` epochs are concatenated,
    so that every batch is full even for a small set.
    """

    def shuffled() -> Tensor:
        return torch.randperm(num_images, generator=generator, device=generator.device)

    if budget.epochs:
        for _ in range(budget.epochs):
            yield from shuffled().split(budget.batch_size)
        return
    queue = shuffled()
    for _ in range(budget.units):
        while len(queue) < budget.batch_size:
            queue = torch.cat((queue, shuffled()))
        yield queue[: budget.batch_size]
        queue = queue[budget.batch_size :]
