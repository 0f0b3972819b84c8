"""What a trained classifier makes of labelled images: how many it has right, how sure it is of each."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .augment import normalise
from .membership import confidence
from .rules import Protocol

Device = str | torch.device
SCORING_BATCH = 128  # images a forward pass when scoring; changes no result, larger ones are slower on a CPU


def answers(
    model: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "m 3 s s"],
    protocol: Protocol,
    device: Device,
) -> Iterator[Float[Tensor, "b classes"]]:
    """What the model, which is on the device, answers, a batch of SCORING_BATCH images at a time."""
    for batch in images.split(SCORING_BATCH):
        with torch.no_grad():
            logits = model(normalise(batch.to(device).float() / 255, protocol))
        yield logits


def confidences(
    model: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "m 3 s s"],
    labels: Int[Tensor, " m"],
    protocol: Protocol,
    device: Device,
) -> Float[np.ndarray, " m"]:
    """How sure the model, which is on the device, is of each image's label."""
    given = answers(model, images, protocol, device), labels.split(SCORING_BATCH)
    sure = [
        confidence(logits.float(), truth.to(device).long()).cpu()
        for logits, truth in zip(*given, strict=True)
    ]
    return torch.cat(sure).numpy()


def accuracy(
    model: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "m 3 s s"],
    labels: Int[Tensor, " m"],
    protocol: Protocol,
) -> float:
    """Share of the images that the model labels right."""
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    given = answers(model, images, protocol, labels.device), labels.split(SCORING_BATCH)
    for logits, truth in zip(*given, strict=True):
        correct += (logits.argmax(dim=1) == truth).sum()
    return correct.item() / len(labels)
