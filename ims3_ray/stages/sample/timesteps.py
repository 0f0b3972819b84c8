"""The timesteps at which candidates are denoised, and which of them an interval of the recipe holds."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ims3_ray.config.settings import Config
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.method.schedule import inversion_grid, space_timesteps, timesteps_from


def start_point(config: Config) -> tuple[int, int]:
    """Of the inversions' grid points s_1 … s_S the one nearest to `start_level`: its place and timestep."""
    grid = inversion_grid(config.invert.steps)[1:].numpy()
    place = int(np.abs(grid - config.sample.start_level).argmin())
    return place, int(grid[place])


def timesteps_of(config: Config) -> Int[Tensor, " n"]:
    """Those at which the model is asked, ascending; from noise or from the level of the starts."""
    settings = config.sample
    timesteps = space_timesteps(settings.steps, "log_snr" if settings.sampler == "dpm" else settings.spacing)
    return timesteps_from(timesteps, start_point(config)[1]) if settings.start == "inversion" else timesteps


def inside(timesteps: Int[Tensor, " n"], interval: tuple[int, ...] | None) -> Bool[Tensor, " n"]:
    """Which timesteps lie in the interval, both ends included; None is all."""
    if interval is None:
        return torch.ones_like(timesteps, dtype=torch.bool)
    return (interval[0] <= timesteps) & (timesteps <= interval[1])


def check_intervals(config: Config) -> None:
    """InputError for an interval of guidance that is asked for and holds none of the run's timesteps."""
    settings, timesteps = config.sample, timesteps_of(config)
    intervals = {"guidance_interval": settings.guidance_interval}
    if settings.guidance in ("modes", "transport"):
        intervals["anchor_interval"] = settings.anchor_interval
    for field, interval in intervals.items():
        if not inside(timesteps, interval).any():
            raise InputError(
                f"sample.{field}: {list(interval or ())} holds none of the timesteps of {settings.steps} "
                f"{settings.sampler} steps ({first_few(timesteps.flip(0).tolist())}); widen it"
            )
