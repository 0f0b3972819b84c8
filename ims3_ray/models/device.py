"""Putting a process on its device so that the same work gives the same bits."""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ims3_ray.errors import InputError

# glibc serves blocks of up to its mmap threshold from its own heap and returns larger ones to the system at
# once. Freeing a mapped block raises the threshold to its size, up to 32 MiB, and what the heap keeps to
# twice that.
KEPT_BYTES = 31 * 2**20
_AMOUNT = r"([\d.]+ [KMGT]iB)"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by the recipe's name of a precision


@dataclass(frozen=True)
class Numerics:
    """What an output's bits depend on beside the weights: kind of device, precision, compilation, graphs."""

    device: str = "cpu"  # or "cuda"
    precision: str = "fp32"  # of matrices; values that train are fp32
    compiled: bool = False
    graphs: bool = False  # CUDA graphs of the transformer's passes

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def prepare_device(kind: str) -> torch.device:
    """The device for `kind` ("cpu" or "cuda"), set for reproducible kernels.

    One thread on a CPU, since sums over threads depend on their number; on a GPU no kernel is chosen by
    timing, and algorithms are the deterministic ones.
    """
    # compiled kernels are not chosen by timing either
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    if kind == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.set_float32_matmul_precision("high")
    else:
        torch.set_num_threads(1)
        keep_freed_memory()
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(kind)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` of the host on `device`, without waiting for the work that it still has to do."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def keep_freed_memory() -> None:
    """Let this process keep the memory of the tensors that it frees, up to 31 MiB each, for the next ones.

    Without it every activation of some megabytes is mapped, zeroed page by page and unmapped again in every
    step: a third of the time of a small network's step on a CPU. It changes no value. Allocators other than
    glibc's are not affected.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)  # never touched, so that it costs no memory


def supported_numerics(wanted: Numerics) -> tuple[Numerics, list[str]]:
    """What this process' device can do of `wanted`, tried out, and a line for each thing that it can't."""
    numerics, lines = wanted, list[str]()
    has_bf16 = wanted.device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted.precision == "bf16" and not has_bf16:
        numerics = replace(numerics, precision="fp32")
        lines.append(f"model.precision: {torch.cuda.get_device_name()} has no bf16; fp32 is used")
    if wanted.compiled and (reason := _why_not_compile(prepare_device(wanted.device))):
        numerics = replace(numerics, compiled=False)
        lines.append(f"model.compile: torch.compile does not work here ({reason}); the model runs as it is")
    if wanted.graphs and (reason := _why_no_graphs(wanted.device)):
        numerics = replace(numerics, graphs=False)
        lines.append(f"model.cuda_graphs: CUDA graphs do not work here ({reason}); the model runs without")
    return numerics, lines


def _why_not_compile(device: torch.device) -> str | None:
    try:
        torch.compile(lambda x: (x * 2).sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler, driver or Triton: each raises its own
        return _in_short(error)
    return None


def _why_no_graphs(kind: str) -> str | None:
    if kind != "cuda":
        return "a CPU has none"
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.ones(8, device=kind).add_(1)
    except Exception as error:  # torch's and the driver's are of several kinds
        return _in_short(error)
    return None


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


@contextlib.contextmanager
def explain_out_of_memory(field: str, rows: int) -> Generator[None, None, None]:
    """Turns torch.OutOfMemoryError inside the block into an InputError: `field` holds the batch's `rows`.

    The message says how much was held and asked for when memory ran out: the batch needs at least the sum.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{field}: a batch of {rows} does not fit the GPU's memory ({_needed(error)}); lower it"
        ) from error


def _needed(error: torch.OutOfMemoryError) -> str:
    """Memory in use, the allocation that failed, the GPU's capacity: from the message where it tells them."""
    held = torch.cuda.memory_allocated() / 2**30  # the tensors of the failed call are still there
    asked = re.search(rf"[Tt]ried to allocate {_AMOUNT}", str(error))
    capacity = re.search(rf"total capacity of {_AMOUNT}", str(error))
    needed = f"needs at least {held:.2f} GiB" + (f" and {asked[1]} more" if asked else " and more")
    return needed + (f", it has {capacity[1]}" if capacity else "")


class DeviceLock:
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
TRANSFORMER_LOCK, DECODER_LOCK = DeviceLock(), DeviceLock(own_stream=True)


def run_padded_batches(
    function: Callable[..., Sequence[Tensor]],
    arrays: Sequence[np.ndarray],
    size: int,
    device: torch.device,
    turn: DeviceLock = TRANSFORMER_LOCK,
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
            outputs = function(*(to_device(torch.from_numpy(batch), device) for batch in filled))
            results.append([output[:count].cpu().numpy() for output in outputs])
    return [np.concatenate(column) for column in zip(*results, strict=True)]


def to_images(pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Pixels 0 … 255 as the −1 … 1 that VAE and extractor take."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Images of −1 … 1 as pixels 0 … 255, rounded; what lies outside is cut off."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
