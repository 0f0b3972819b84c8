"""Run models on a device reproducibly: setup, transfers, padded batches, ordered sums, memory errors.

In padded batches, a row's bits depend on the batch size but not on the number of rows or their neighbours.
"""

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ims3_ray.errors import InputError

MALLOPT = {-4: 0, -1: 2**31 - 1}  # glibc's M_MMAP_MAX: no mapped blocks; M_TRIM_THRESHOLD: retained bytes
_SIZE = r"([\d.]+ [KMGT]iB)"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by the recipe's model.precision


@dataclass(frozen=True)
class Numerics:
    """Settings that an output's bits depend on besides the weights."""

    device: str = "cpu"  # or "cuda"
    precision: str = "fp32"  # of matrices; trainable values are fp32
    compiled: bool = False
    graphs: bool = False  # run the transformer as CUDA graphs

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def deviation(self) -> str:
        """Differences from plain fp32, such as "bf16, compiled"; empty if none."""
        precision = [] if self.precision == "fp32" else [self.precision]
        return ", ".join([*precision, *["compiled"] * self.compiled])


def prepare_device(kind: str) -> torch.device:
    """Return the torch device for `kind` ("cpu" or "cuda"), set to reproducible kernels.

    CPU: one thread, because sums over threads depend on their number. GPU: deterministic algorithms, none
    chosen by timing.
    """
    # no autotuning of compiled kernels
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
    # filling finds errors, at the price of an operation per tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]: the module's class has it
    return torch.device(kind)


@contextlib.contextmanager
def strictly_deterministic() -> Generator[None, None, None]:
    """Fail on an operation without a deterministic kernel; attention takes kernels that are deterministic.

    While torch only warns, flash attention adds gradients by atomics. For trainings whose bits are promised.
    """
    torch.use_deterministic_algorithms(True)
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy host tensor `values` to `device` without waiting for queued work."""
    if device.type != "cuda":
        return values.to(device)
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors, up to 2 GiB, for reuse.

    Otherwise every large activation is mapped, zeroed and unmapped in each step: a third of the time of a
    small network's step on a CPU. Changes no value. Has no effect on other allocators.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, value in MALLOPT.items():
            mallopt(option, value)


def supported_numerics(wanted: Numerics) -> tuple[Numerics, list[str]]:
    """Try `wanted` on this process's device; return what works and a line per setting that does not."""
    numerics, lines = wanted, list[str]()
    has_bf16 = wanted.device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted.precision == "bf16" and not has_bf16:
        numerics = replace(numerics, precision="fp32")
        lines.append(f"model.precision: {torch.cuda.get_device_name()} has no bf16; using fp32")
    if wanted.compiled and (reason := _compile_problem(prepare_device(wanted.device))):
        numerics = replace(numerics, compiled=False)
        lines.append(f"model.compile: torch.compile does not work here ({reason}); running without")
    if wanted.graphs and (reason := _graphs_problem(wanted.device)):
        numerics = replace(numerics, graphs=False)
        lines.append(f"model.cuda_graphs: CUDA graphs do not work here ({reason}); running without")
    return numerics, lines


def _compile_problem(device: torch.device) -> str | None:
    try:
        torch.compile(lambda x: (x * 2).sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # compiler, driver and Triton raise different types
        return _first_line(error)
    return None


def _graphs_problem(kind: str) -> str | None:
    if kind != "cuda":
        return "they need a GPU"
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.ones(8, device=kind).add_(1)
    except Exception as error:  # torch and the driver raise different types
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


@contextlib.contextmanager
def explain_out_of_memory(field: str, rows: int) -> Generator[None, None, None]:
    """Turn torch.OutOfMemoryError inside the block into an InputError that names `field`.

    The message gives the memory in use and the failed allocation: the batch needs at least their sum.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{field}: a batch of {rows} does not fit the GPU's memory ({_describe_memory(error)}); lower it"
        ) from error


def _describe_memory(error: torch.OutOfMemoryError) -> str:
    """Describe memory in use, failed allocation and GPU capacity, as far as the message has them."""
    allocated = torch.cuda.memory_allocated() / 2**30  # tensors of the failed call are still allocated
    asked = re.search(rf"[Tt]ried to allocate {_SIZE}", str(error))
    capacity = re.search(rf"total capacity of {_SIZE}", str(error))
    message = f"needs at least {allocated:.2f} GiB" + (f" and {asked[1]} more" if asked else " and more")
    return message + (f", it has {capacity[1]}" if capacity else "")


class DeviceLock:
    """Run one call of an actor at a time on a device. Calls with different locks overlap."""

    def __init__(self, *, own_stream: bool = False):
        """With `own_stream`, GPU kernels run in a stream of their own, beside those of other locks."""
        self._lock, self._own_stream = threading.Lock(), own_stream
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Generator[None, None, None]:
        with self._lock:
            if not self._own_stream or device.type != "cuda":
                yield
                return
            if device not in self._streams:
                torch.cuda.synchronize(device)  # the models are loaded
                self._streams[device] = torch.cuda.Stream(device)
            with torch.cuda.stream(self._streams[device]):
                yield


# DiT passes; VAE decoding and feature extraction
TRANSFORMER_LOCK, DECODER_LOCK = DeviceLock(), DeviceLock(own_stream=True)


def run_padded_batches(
    function: Callable[..., Sequence[Tensor]],
    arrays: Sequence[np.ndarray],
    size: int,
    device: torch.device,
    lock: DeviceLock = TRANSFORMER_LOCK,
) -> list[np.ndarray]:
    """Apply `function` to `arrays` (equal numbers of rows) in batches of exactly `size`, holding `lock`.

    The last batch is padded with zeros; their results are dropped.
    """
    results = []
    for start in range(0, max(1, len(arrays[0])), size):
        count = min(size, len(arrays[0]) - start)
        filled = [np.zeros((size, *a.shape[1:]), a.dtype) for a in arrays]
        for batch, array in zip(filled, arrays, strict=True):
            batch[:count] = array[start : start + count]
        with lock.on(device):
            outputs = function(*(to_device(torch.from_numpy(batch), device) for batch in filled))
            results.append([output[:count].cpu().numpy() for output in outputs])
    return [np.concatenate(column) for column in zip(*results, strict=True)]


def to_images(pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert pixels 0 … 255 to −1 … 1, the range of VAE and extractor."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Convert images of −1 … 1 to pixels 0 … 255, rounded and clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def split_micro_batches(micro_batches: int, world: int) -> list[range]:
    """Divide the micro-batches into contiguous ranges, one per worker, as even as possible.

    Raises ValueError for more workers than micro-batches.
    """
    if world > micro_batches:
        raise ValueError(f"{world} workers for {micro_batches} micro-batches; use at most {micro_batches}")
    ends = [micro_batches * k // world for k in range(world + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def sum_in_order(local: Tensor, counts: list[int]) -> Tensor:
    """Sum over the micro-batches (first axis) of all workers, in their order.

    Each worker sums one slice of the values and sends it to all. With a micro-batch per worker, each sends
    less than twice the bytes of the sum, for any number of workers.
    """
    workers = len(counts)
    if workers == 1:
        return _sum_rows(local)
    values = local.flatten(1)
    size = -(-values.shape[1] // workers)  # of a slice; the last ones are filled up with zeros
    filled = torch.nn.functional.pad(values, (0, workers * size - values.shape[1]))
    slices = filled.unflatten(1, (workers, size)).transpose(0, 1).contiguous()
    own, sent = values.new_empty(sum(counts), size), [len(values) * size] * workers
    dist.all_to_all_single(own.view(-1), slices.view(-1), [n * size for n in counts], sent)
    total = values.new_empty(workers * size)
    dist.all_gather_single(total, _sum_rows(own))
    return total[: values.shape[1]].view(local.shape[1:])


def _sum_rows(rows: Tensor) -> Tensor:
    first, *others = rows
    total = first.clone()
    for row in others:
        total += row
    return total


def gather(local: Tensor, counts: list[int]) -> Tensor:
    """Return the micro-batches (first axis) of all workers in order; `counts` is the number per worker."""
    if len(counts) == 1:
        return local
    filled = torch.cat([local, local.new_zeros(max(counts) - len(local), *local.shape[1:])]).contiguous()
    gathered = [torch.empty_like(filled) for _ in counts]
    dist.all_gather(gathered, filled)
    return torch.cat([parts[:count] for parts, count in zip(gathered, counts, strict=True)])
