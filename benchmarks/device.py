"""Measure a device's matrix rate and copy bandwidth, and a process's peak memory."""

import resource
import sys
from dataclasses import dataclass

import torch

from ims3_ray.cluster.environment import cpu_model
from ims3_ray.config.base import DeviceKind, Precision
from ims3_ray.jobs.distill.estimate import MATRIX, matrix_rate, runs_per_second
from ims3_ray.models.device import DTYPES

COPIED_BYTES = {"cpu": 2**27, "cuda": 2**31}  # far larger than caches
PRECISION: dict[str, Precision] = {"cpu": "fp32", "cuda": "bf16"}
MEASURED_S = 0.5


@dataclass(frozen=True)
class DeviceFigures:
    """A device's name and measured rates; a CPU is measured with one thread, like an actor."""

    kind: DeviceKind
    name: str
    precision: Precision
    matrix_size: int
    matrix_rate: float  # operations per second; a multiply-add is two
    copy_bandwidth: float  # bytes per second, reads and writes both counted

    def line(self) -> str:
        threads = "one thread, as the actors run" if self.kind == "cpu" else "dense"
        return (
            f"device {self.name}: {self.matrix_rate / 1e12:.4g} TFLOP/s in {self.precision} "
            f"({self.matrix_size}³ products, {threads}), {self.copy_bandwidth / 1e9:.4g} GB/s copied (read + "
            "written)"
        )


def measure_device(kind: DeviceKind) -> DeviceFigures:
    """Measure this process's device, in about a second."""
    precision, size = PRECISION[kind], MATRIX[kind]
    rate = matrix_rate(kind, DTYPES[precision], MEASURED_S)
    return DeviceFigures(kind, device_name(kind), precision, size, rate, copy_bandwidth(kind))


def copy_bandwidth(kind: DeviceKind, seconds: float = MEASURED_S) -> float:
    """Bytes per second, read and written, of a copy within the device's memory."""
    source = torch.zeros(COPIED_BYTES[kind], dtype=torch.uint8, device=kind)
    target = torch.zeros_like(source)
    return 2 * source.nbytes * runs_per_second(kind, lambda: target.copy_(source), seconds)


def device_name(kind: DeviceKind) -> str:
    return torch.cuda.get_device_name() if kind == "cuda" else cpu_model()


def peak_memory(kind: DeviceKind) -> int:
    """Peak bytes of this process: allocated by torch on a GPU, resident on a CPU."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
