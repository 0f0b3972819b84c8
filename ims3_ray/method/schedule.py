"""Noise levels over time.

ᾱ_t   cumulative product of 1 − β, β linear from 1e-4 to 0.02 over T = 1000 steps (Ho et al. 2020; DiT)
λ_t   half the logarithm of the signal-to-noise ratio ᾱ_t / (1 − ᾱ_t)
s_k   the inversion's grid 0 = s_0 < s_1 < … < s_S = T − 1
τ_i   the respaced steps at which a sampler asks the model
"""

import itertools
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02
Spacing = Literal["linspace", "leading", "log_snr"]


def alphas_bar(num_timesteps: int = NUM_TRAIN_TIMESTEPS) -> Float[Tensor, " T"]:
    """ᾱ_t for t = 0 … T − 1 in float64: the linear schedule of Ho et al. 2020, that of DiT's checkpoints."""
    betas = torch.linspace(BETA_START, BETA_END, num_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def inversion_grid(points: int, num_timesteps: int = NUM_TRAIN_TIMESTEPS) -> Int[Tensor, " levels"]:
    """The grid s_0 = 0 < s_1 < … < s_S = T − 1, evenly spaced and rounded; `points` is S.

    Raises ValueError unless 1 <= points <= T − 1.
    """
    if not 1 <= points <= num_timesteps - 1:
        raise ValueError(f"points: must lie between 1 and {num_timesteps - 1}, got {points}")
    return torch.from_numpy(np.linspace(0, num_timesteps - 1, points + 1).round().astype(np.int64))


def grid_index_below(timesteps: Int[Tensor, " B"], grid: Int[Tensor, " levels"]) -> Int[Tensor, " B"]:
    """For every t the k of the largest grid point s_k < t; 0 (no matching term) where only s_0 lies below."""
    return torch.searchsorted(grid, timesteps, right=False) - 1


def space_timesteps(
    steps: int, spacing: Spacing = "linspace", num_timesteps: int = NUM_TRAIN_TIMESTEPS
) -> Int[Tensor, " n"]:
    """The timesteps τ_0 < … < τ_{n−1} that a sampler of `steps` steps visits (from the last to the first).

    `linspace` runs from 0 to T − 1 as DiT's own sampler does, stride by stride, whose rounding shows in a
    step of every fourth count of steps; `leading` starts at 0 and ends at T − T // steps, as diffusers'
    schedulers do by default; `log_snr` runs from 0 to T − 1 in even steps of λ (Lu et al. 2022), as near to
    them as different timesteps can be. Raises ValueError unless 2 <= steps <= T.
    """
    if not 2 <= steps <= num_timesteps:
        raise ValueError(f"steps: must lie between 2 and {num_timesteps}, got {steps}")
    if spacing == "linspace":
        strides = itertools.repeat((num_timesteps - 1) / (steps - 1), steps - 1)
        return torch.tensor([round(t) for t in itertools.accumulate(strides, initial=0.0)])
    if spacing == "leading":
        return torch.arange(steps) * (num_timesteps // steps)
    if spacing == "log_snr":
        falling = torch.logit(alphas_bar(num_timesteps)).flip(0).numpy()  # 2 λ
        even = np.interp(np.linspace(falling[-1], falling[0], steps), falling, np.arange(num_timesteps)[::-1])
        return _apart(even.round().astype(np.int64), num_timesteps)
    raise ValueError(f"spacing: {spacing!r} is none of {', '.join(get_args(Spacing))}")


def _apart(timesteps: np.ndarray, num_timesteps: int) -> Int[Tensor, " n"]:
    """Ascending timesteps, raised and then lowered where two are the same, until all differ."""
    places = np.arange(len(timesteps))
    raised = np.maximum.accumulate(timesteps - places) + places
    return torch.from_numpy(np.minimum(raised, num_timesteps - len(places) + places))


def timesteps_from(timesteps: Int[Tensor, " n"], level: int) -> Int[Tensor, " m"]:
    """The timesteps of a sampler that starts at `level`: those below it, and the level itself, ascending."""
    return torch.cat([timesteps[timesteps < level], timesteps.new_tensor([level])])
