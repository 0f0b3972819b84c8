"""What a run will cost, for --dry-run: the stages' counted operations over a measured matrix rate.

Estimates, and said to be: within a factor of two on the machines that they were compared on.
"""

from dataclasses import dataclass

import torch

from ims3_ray.cluster.device_rate import matrix_rate
from ims3_ray.pipeline.steps import Step
from ims3_ray.stages.context import Context
from ims3_ray.stages.costs import count_forward

EFFICIENCY = 0.35  # share of the matrix rate that small models reach
RATE_S = 0.25  # over which it is measured
PROCESS_BYTES = 5e8  # a worker with torch


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes on disk, and bytes of memory at once over all workers."""

    rows: int
    seconds: float
    disk: float
    memory: float


def estimate_steps(context: Context, steps: list[Step]) -> list[Estimate]:
    """An estimate for every step, in their order."""
    forward, rate = count_forward(context), _measure_rate(context) * EFFICIENCY
    estimates = []
    for step in steps:
        cost = step.stage.cost(context, forward)
        workers = cost.workers or context.machine.actors
        seconds = cost.start_s + cost.rows * cost.operations / (rate * workers)
        estimates.append(Estimate(cost.rows, seconds, cost.disk, workers * (PROCESS_BYTES + cost.memory)))
    return estimates


def _measure_rate(context: Context) -> float:
    """Operations a second of one worker, in float32 where a cluster's device is not here to be measured."""
    device, dtype = context.machine.device, context.numerics.dtype
    if device == "cuda" and not torch.cuda.is_available():
        device, dtype = "cpu", torch.float32
    return matrix_rate(device, dtype, seconds=RATE_S)
