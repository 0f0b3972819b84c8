"""What a device can do: its matrix rate and copy bandwidth, measured, and a process' peak memory."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ims3_ray.config.base import DeviceKind, Precision
from ims3_ray.models.device import DTYPES

from .environment import cpu_model

MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns
COPIED_BYTES = {"cpu": 2**27, "cuda": 2**31}  # far more than caches hold
PRECISION: dict[str, Precision] = {"cpu": "fp32", "cuda": "bf16"}
MEASURED_S = 0.5


@dataclass(frozen=True)
class DeviceFigures:
    """A device's name and what was measured on it; on a CPU with one thread, as actors run."""

    kind: DeviceKind
    name: str
    precision: Precision
    matrix_size: int
    matrix_rate: float  # operations a second, a multiplication and an addition being two
    copy_bandwidth: float  # bytes a second, read and written ones both counted

    def line(self) -> str:
        threads = "one thread, as the actors run" if self.kind == "cpu" else "dense"
        return (
            f"device {self.name}: {self.matrix_rate / 1e12:.4g} TFLOP/s in {self.precision} "
            f"({self.matrix_size}³ products, {threads}), {self.copy_bandwidth / 1e9:.4g} GB/s copied (read + "
            "written)"
        )


def measure_device(kind: DeviceKind) -> DeviceFigures:
    """The figures of this process' device, in about a second."""
    precision, size = PRECISION[kind], MATRIX[kind]
    rate = matrix_rate(kind, DTYPES[precision], size)
    return DeviceFigures(kind, device_name(kind), precision, size, rate, copy_bandwidth(kind))


def matrix_rate(
    kind: DeviceKind, dtype: torch.dtype, size: int | None = None, seconds: float = MEASURED_S
) -> float:
    """Operations a second of products of two normal `size` × `size` matrices (that of MATRIX where None)."""
    size = size or MATRIX[kind]
    a = torch.randn(size, size, device=kind).to(dtype)
    out = torch.empty_like(a)
    return 2 * size**3 * _repeated(kind, lambda: torch.mm(a, a, out=out), seconds)


def copy_bandwidth(kind: DeviceKind, seconds: float = MEASURED_S) -> float:
    """Bytes a second of a copy within the device's memory, read and written ones both counted."""
    source = torch.zeros(COPIED_BYTES[kind], dtype=torch.uint8, device=kind)
    target = torch.zeros_like(source)
    return 2 * source.nbytes * _repeated(kind, lambda: target.copy_(source), seconds)


def _repeated(kind: DeviceKind, action: Callable[[], object], seconds: float) -> float:
    """Times a second that `action` runs, on one thread on a CPU; the first time is not counted."""
    threads = torch.get_num_threads()
    if kind == "cpu":
        torch.set_num_threads(1)
    try:
        action()
        synchronize(kind)
        began, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds or not done:
            action()
            synchronize(kind)
            done += 1
        return done / elapsed
    finally:
        torch.set_num_threads(threads)


def synchronize(kind: DeviceKind) -> None:
    """Wait until the device has done what it was given."""
    if kind == "cuda":
        torch.cuda.synchronize()


def device_name(kind: DeviceKind) -> str:
    """The model of the GPU or the CPU."""
    return torch.cuda.get_device_name() if kind == "cuda" else cpu_model()


def peak_memory(kind: DeviceKind) -> int:
    """Bytes that this process held at most: allocated by torch on a GPU, resident on a CPU."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held
