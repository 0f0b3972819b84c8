"""What a run will cost, for --dry-run: the stages' counted operations over a measured matrix rate.

Estimates, and said to be: within a factor of two on the machines that they were compared on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ims3_ray.cluster.device_benchmark import matrix_rate
from ims3_ray.pipeline.steps import Step
from ims3_ray.stages.base import Stage, count_forward
from ims3_ray.stages.context import Context

EFFICIENCY = 0.35  # share of the matrix rate that small models reach
RATE_S = 0.25  # over which it is measured
PROCESS_BYTES = 5e8  # a worker with torch
DRIVER_BYTES = 7e8  # the driver with torch, Ray and MLflow
LISTED_BYTES = 500.0  # of an image's path and content hash


@dataclass(frozen=True)
class Estimate:
    """Seconds, and bytes: in the storage, on each node's own disk, in the driver's memory and a worker's."""

    rows: int
    start_s: float  # of its workers
    work_s: float  # of all its workers together, side by side
    disk: float
    node_disk: float
    driver: float
    worker: float

    @property
    def seconds(self) -> float:
        return self.start_s + self.work_s


def estimate_steps(context: Context, steps: list[Step]) -> list[Estimate]:
    """An estimate for every step, in their order, at the rate of this machine's device."""
    return estimate_stages(context, [step.stage for step in steps], _measure_rate(context) * EFFICIENCY)


def estimate_stages(context: Context, stages: Sequence[Stage], rate: float) -> list[Estimate]:
    """An estimate for every stage, in their order, where a worker does `rate` operations a second."""
    forward = count_forward(context)
    listed = DRIVER_BYTES + LISTED_BYTES * sum(len(images) for images in context.images.values())
    estimates: list[Estimate] = []
    for stage in stages:
        cost, node_disk = stage.cost(context, forward), stage.node_disk(context)
        workers = stage.gpu_usage(context).workers
        work_s = cost.rows * cost.operations / (rate * max(1, workers))
        worker = PROCESS_BYTES + cost.memory if workers else 0.0
        driver = listed + cost.driver
        figures = (cost.rows, cost.start_s, work_s, cost.disk, node_disk, driver, worker)
        estimates.append(Estimate(*figures))
    return estimates


def _measure_rate(context: Context) -> float:
    """Operations a second of one worker, in float32 where a cluster's device is not here to be measured."""
    device, dtype = context.machine.device, context.numerics.dtype
    if device == "cuda" and not torch.cuda.is_available():
        device, dtype = "cpu", torch.float32
    return matrix_rate(device, dtype, seconds=RATE_S)
