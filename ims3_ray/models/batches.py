"""Full batches whatever the number of rows: a row's bits depend on the batch's size, never on its neighbours."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

DEVICE_TURN = threading.Lock()  # an actor's calls overlap (fanout.py): one computes while others read, encode and write


def in_batches(
    function: Callable[..., Sequence[Tensor]], arrays: Sequence[np.ndarray], size: int, device: torch.device
) -> list[np.ndarray]:
    """`function` of `arrays` (equal numbers of rows) in batches of exactly `size` rows on `device`.

    The last batch is filled up with zeros, whose results are cut off.
    """
    results = []
    for start in range(0, max(1, len(arrays[0])), size):
        count = min(size, len(arrays[0]) - start)
        filled = [np.zeros((size, *a.shape[1:]), a.dtype) for a in arrays]
        for batch, array in zip(filled, arrays, strict=True):
            batch[:count] = array[start : start + count]
        with DEVICE_TURN:
            outputs = function(*(torch.from_numpy(batch).to(device) for batch in filled))
            results.append([output[:count].cpu().numpy() for output in outputs])
    return [np.concatenate(column) for column in zip(*results, strict=True)]


def to_images(pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Pixels 0 … 255 as the −1 … 1 that VAE and extractor take."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Images of −1 … 1 as pixels 0 … 255, rounded; what lies outside is cut off."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
