"""Operations an image of each stage, counted by torch: of this project's path and of the published settings'."""

from typing import NamedTuple

import torch

from ims3_ray.jobs.distill.estimate import count_operations, operations_per_image
from ims3_ray.method import difffit
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.stages.context import Context

PUBLISHED_STEPS = 50


class Operations(NamedTuple):
    """A multiplication and an addition are two."""

    own: float
    published: float


def operations(context: Context, stage: str) -> Operations:
    """Operations an image of the stages that a generator works in: sample, finetune, encode, invert."""
    config, one = context.config, operations_per_image(context)
    views = 2 if config.data.mirror else 1
    if stage == "sample":
        guided = 1 if config.sample.guidance_scale == 1 else 2
        own = config.sample.steps * guided * one["dit"] + one["decode"] + one["embed"]
        return Operations(own, PUBLISHED_STEPS * 2 * one["dit"] + one["decode"])
    if stage == "encode":
        return Operations(views * one["encode"], views * one["encode"])
    if stage == "invert":
        inverted = views * config.invert.points * one["dit"]
        return Operations(inverted, inverted)
    assert stage == "finetune", stage
    own, whole = (step_operations(context.info.config, frozen=frozen) for frozen in (True, False))
    return Operations(own, one["encode"] + one["dit"] + whole)


def step_operations(config: DiTConfig, *, frozen: bool) -> float:
    """Forward and backward pass of one image: to DiffFit's parameters where the rest is `frozen`, or to all
    of them.
    """
    with torch.device("meta"):
        dit, z = DiT(config), torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
        label = torch.zeros(1, dtype=torch.int64)
    difffit.prepare(dit)
    if not frozen:
        dit.requires_grad_(True)

    def step() -> None:
        with torch.enable_grad():
            dit(z, label, label).sum().backward()

    return count_operations(step)
