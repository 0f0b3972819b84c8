"""Operations an image of each stage, counted by torch: as this project works, and as published."""

from typing import NamedTuple

import torch

from ims3_ray.method import difffit
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.stages.context import Context
from ims3_ray.stages.costs import count_forward, count_operations

PUBLISHED_STEPS = 50


class Operations(NamedTuple):
    """A multiplication and an addition are two."""

    own: float
    published: float


def operations(context: Context, stage: str) -> Operations:
    """Operations an image of the stages that a generator works in: sample, finetune, encode, invert."""
    forward = count_forward(context)
    if stage == "finetune":
        own, whole = (step_operations(context.info.config, frozen=frozen) for frozen in (True, False))
        return Operations(own, forward.encode + forward.dit + whole)
    own = next(of.cost(context, forward).operations for of in STAGES if of.name == stage)
    return Operations(own, PUBLISHED_STEPS * 2 * forward.dit + forward.decode if stage == "sample" else own)


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
