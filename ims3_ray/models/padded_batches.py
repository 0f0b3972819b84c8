"""Full batches whatever the number of rows: a row's bits depend on the batch's size, not its neighbours."""

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .device import send


class Turn:
    """One call of an actor at a time, where several overlap. What waits for different turns runs together."""

    def __init__(self, *, own_stream: bool = False):
        """With `own_stream`, kernels on a GPU are queued beside those of other turns, not behind them."""
        self._lock, self._own_stream = threading.Lock(), own_stream
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Generator[None, None, None]:
        with self._lock:
            if not self._own_stream or device.type != "cuda":
                yield
                return
            if device not in self._streams:
                torch.cuda.synchronize(device)  # the models are there
                self._streams[device] = torch.cuda.Stream(device)
            with torch.cuda.stream(self._streams[device]):
                yield


# the heavy work, and what follows it: VAE decoding, features
TRANSFORMER, DECODER = Turn(), Turn(own_stream=True)


def in_batches(
    function: Callable[..., Sequence[Tensor]],
    arrays: Sequence[np.ndarray],
    size: int,
    device: torch.device,
    turn: Turn = TRANSFORMER,
) -> list[np.ndarray]:
    """`function` of `arrays` (equally many rows) in batches of exactly `size` on `device`, at its `turn`.

    The last batch is filled up with zeros, whose results are cut off.
    """
    results = []
    for start in range(0, max(1, len(arrays[0])), size):
        count = min(size, len(arrays[0]) - start)
        filled = [np.zeros((size, *a.shape[1:]), a.dtype) for a in arrays]
        for batch, array in zip(filled, arrays, strict=True):
            batch[:count] = array[start : start + count]
        with turn.on(device):
            outputs = function(*(send(torch.from_numpy(batch), device) for batch in filled))
            results.append([output[:count].cpu().numpy() for output in outputs])
    return [np.concatenate(column) for column in zip(*results, strict=True)]


def to_images(pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Pixels 0 … 255 as the −1 … 1 that VAE and extractor take."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Images of −1 … 1 as pixels 0 … 255, rounded; what lies outside is cut off."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
