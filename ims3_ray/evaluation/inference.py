"""A classifier's forward pass by device: as written on a CPU; bf16, channels last, compiled on a GPU.

What is chosen follows from the kind of device, what it can do and the number of steps, never from timing.
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ims3_ray.models.device import Numerics, supported_numerics

COMPILED_FROM = 2000  # steps of a training; a shorter one ends before compiling has paid for itself
logger = logging.getLogger(__name__)


def numerics_for(kind: str, steps: int) -> Numerics:
    """What a training of so many steps runs in on a device of this kind ("cpu" or "cuda")."""
    if kind != "cuda":
        return Numerics(kind)
    return _tried(steps >= COMPILED_FROM)


@functools.cache  # so that what is missing is tried, and told, once a process
def _tried(compiled: bool) -> Numerics:
    numerics, missing = supported_numerics(Numerics("cuda", "bf16", compiled))
    for line in missing:
        logger.warning("evaluation: %s", line.partition(": ")[2])
    return numerics


def forward_in(model: nn.Module, numerics: Numerics) -> Callable[[Tensor], Tensor]:
    """The function from images (B, 3, S, S) to logits (B, classes) in float32; `model` itself for plain fp32.

    Weights, their gradients and the optimiser stay in float32: autocast has bf16 in matrix products alone.
    """
    if numerics.precision == "fp32" and not numerics.compiled:
        return model
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] torch's stub lacks it
    run = (
        torch.compile(model, dynamic=False) if numerics.compiled else model
    )  # few shapes: full and last batches

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=numerics.precision == "bf16"):
            return run(x.contiguous(memory_format=torch.channels_last)).float()

    return forward
