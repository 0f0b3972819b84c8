"""Estimate time, disk and memory of a run for --dry-run: counted operations over a measured matrix rate.

Estimates were within a factor of two on the machines where they were compared with measurements.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ims3_ray.config.base import DeviceKind
from ims3_ray.pipeline.steps import Step
from ims3_ray.stages.base import Stage, count_forward
from ims3_ray.stages.context import Context

MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns
EFFICIENCY = 0.35  # fraction of the matrix rate that small models reach
RATE_S = 0.25  # duration of the measurement
PROCESS_BYTES = 5e8  # a worker with torch
DRIVER_BYTES = 7e8  # the driver with torch, Ray and MLflow
LISTED_BYTES = 500.0  # per image, for its path and content hash


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds, and bytes in the storage, on each node's disk, and in memory."""

    rows: int
    start_s: float  # to start the workers
    work_s: float  # with all workers in parallel
    disk: float
    node_disk: float
    driver: float
    worker: float

    @property
    def seconds(self) -> float:
        return self.start_s + self.work_s


def estimate_steps(context: Context, steps: list[Step]) -> list[Estimate]:
    """Return an estimate per step, at the rate of this machine's device."""
    return estimate_stages(context, [step.stage for step in steps], _measure_rate(context) * EFFICIENCY)


def estimate_stages(context: Context, stages: Sequence[Stage], rate: float) -> list[Estimate]:
    """Return an estimate per stage, for workers that do `rate` operations per second."""
    forward = count_forward(context)
    listed = DRIVER_BYTES + LISTED_BYTES * sum(len(images) for images in context.images.values())
    estimates: list[Estimate] = []
    for stage in stages:
        cost, node_disk = stage.cost(context, forward), stage.node_disk(context)
        workers = stage.gpu_usage(context).workers
        work_s = cost.rows * cost.operations / (rate * max(1, workers))
        worker = PROCESS_BYTES + cost.memory if workers else 0.0
        driver = listed + cost.driver
        estimates.append(Estimate(cost.rows, cost.start_s, work_s, cost.disk, node_disk, driver, worker))
    return estimates


def _measure_rate(context: Context) -> float:
    """Return operations per second of a worker; of this CPU in fp32 if only the cluster has a GPU."""
    device, dtype = context.machine.device, context.numerics.dtype
    if device == "cuda" and not torch.cuda.is_available():
        device, dtype = "cpu", torch.float32
    return matrix_rate(device, dtype, RATE_S)


def matrix_rate(kind: DeviceKind, dtype: torch.dtype, seconds: float) -> float:
    """Operations per second in products of two normal matrices; a multiply-add counts as two."""
    a = torch.randn(MATRIX[kind], MATRIX[kind], device=kind).to(dtype)
    out = torch.empty_like(a)
    return 2 * len(a) ** 3 * runs_per_second(kind, lambda: torch.mm(a, a, out=out), seconds)


def runs_per_second(kind: DeviceKind, action: Callable[[], object], seconds: float) -> float:
    """Runs of `action` per second, on one thread if on a CPU; the first run is a warm-up."""
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
    """Wait until the device has finished its queue."""
    if kind == "cuda":
        torch.cuda.synchronize()
