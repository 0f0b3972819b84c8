"""A classifier's forward pass and accuracy on labelled images.

On a CPU the network runs as written; on a GPU in bf16, channels last, and compiled for long trainings. The
choice depends on the device's kind and abilities and on the number of steps, never on timing.
"""

import functools
import logging
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ims3_ray.models.device import Numerics, supported_numerics

from .augment import normalise
from .protocols import Protocol

COMPILED_FROM = 10_000  # steps; estimated: a shorter training ends before compilation has paid off
SCORING_BATCH = 128  # images per forward pass; no effect on results, larger is slower on a CPU
logger = logging.getLogger(__name__)
Device = str | torch.device
Model = Callable[[Tensor], Tensor]


def numerics_for(kind: str, steps: int) -> Numerics:
    """The numerics of a training of `steps` steps on a device of `kind` ("cpu" or "cuda")."""
    if kind != "cuda":
        return Numerics(kind)
    return _gpu_numerics(steps >= COMPILED_FROM)


@functools.cache  # try once per process, and warn once
def _gpu_numerics(compiled: bool) -> Numerics:
    numerics, missing = supported_numerics(Numerics("cuda", "bf16", compiled))
    for line in missing:
        logger.warning("evaluation: %s", line.partition(": ")[2])
    return numerics


def forward_fn(model: nn.Module, numerics: Numerics) -> Model:
    """The function from images (B, 3, S, S) to float32 logits (B, classes); `model` itself for plain fp32.

    Weights, gradients and optimiser state stay in float32: autocast uses bf16 in matrix products only.
    """
    if numerics.precision == "fp32" and not numerics.compiled:
        return model
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] torch's stub lacks it
    if numerics.compiled:
        torch.compiler.reset()  # beyond a limit of graphs, which all networks share, torch runs eagerly
    # dynamic=False: the only shapes are full and last batches
    run = torch.compile(model, dynamic=False) if numerics.compiled else model

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=numerics.precision == "bf16"):
            return run(x.contiguous(memory_format=torch.channels_last)).float()

    return forward


def predict_batches(
    model: Model, images: UInt8[Tensor, "m 3 s s"], protocol: Protocol, device: Device
) -> Iterator[Float[Tensor, "b classes"]]:
    """Logits of a model on `device`, in batches of SCORING_BATCH images."""
    for batch in images.split(SCORING_BATCH):
        with torch.no_grad():
            logits = model(normalise(batch.to(device).float() / 255, protocol))
        yield logits


def accuracy(
    model: Model, images: UInt8[Tensor, "m 3 s s"], labels: Int[Tensor, " m"], protocol: Protocol
) -> float:
    """Share of the images that the model classifies correctly."""
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    logits_of = predict_batches(model, images, protocol, labels.device)
    for logits, truth in zip(logits_of, labels.split(SCORING_BATCH), strict=True):
        correct += (logits.argmax(dim=1) == truth).sum()
    return correct.item() / len(labels)
