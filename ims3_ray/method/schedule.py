"""Noise schedule and timestep grids.

ᾱ_t   cumulative product of 1 − β; β linear from 1e-4 to 0.02 over T = 1000 steps (Ho et al. 2020; DiT)
λ_t   half the log signal-to-noise ratio ᾱ_t / (1 − ᾱ_t)
s_k   inversion grid 0 = s_0 < s_1 < … < s_S = T − 1
τ_i   timesteps at which a sampler calls the model
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
    """Return ᾱ_t, t = 0 … T − 1, float64: the linear schedule of Ho et al. 2020 and DiT's checkpoints."""
    betas = torch.linspace(BETA_START, BETA_END, num_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def inversion_grid(points: int, num_timesteps: int = NUM_TRAIN_TIMESTEPS) -> Int[Tensor, " levels"]:
    """Return s_0 = 0 < s_1 < … < s_S = T − 1, evenly spaced and rounded; `points` is S.

    Raises ValueError unless 1 <= points <= T − 1.
    """
    if not 1 <= points <= num_timesteps - 1:
        raise ValueError(f"points: must be between 1 and {num_timesteps - 1}, not {points}")
    return torch.from_numpy(np.linspace(0, num_timesteps - 1, points + 1).round().astype(np.int64))


def grid_index_below(timesteps: Int[Tensor, " B"], grid: Int[Tensor, " levels"]) -> Int[Tensor, " B"]:
    """Return k of the largest grid point s_k < t for each t; 0 (no matching term) if only s_0 is below."""
    return torch.searchsorted(grid, timesteps, right=False) - 1


def space_timesteps(
    steps: int, spacing: Spacing = "linspace", num_timesteps: int = NUM_TRAIN_TIMESTEPS
) -> Int[Tensor, " n"]:
    """Return the sampler's timesteps τ_0 < … < τ_{n−1}, visited from last to first.

    - `linspace`: 0 to T − 1. Strides are accumulated as DiT's sampler does, whose rounding shows in one step
      of every fourth count.
    - `leading`: the multiples of T // steps from 0, the default of diffusers' schedulers.
    - `log_snr`: 0 to T − 1, even in λ (Lu et al. 2022) as far as distinct timesteps allow.

    Raises ValueError unless 2 <= steps <= T.
    """
    if not 2 <= steps <= num_timesteps:
        raise ValueError(f"steps: must be between 2 and {num_timesteps}, not {steps}")
    if spacing == "linspace":
        strides = itertools.repeat((num_timesteps - 1) / (steps - 1), steps - 1)
        return torch.tensor([round(t) for t in itertools.accumulate(strides, initial=0.0)])
    if spacing == "leading":
        return torch.arange(steps) * (num_timesteps // steps)
    if spacing == "log_snr":
        log_snr = torch.logit(alphas_bar(num_timesteps)).flip(0).numpy()  # 2 λ
        spaced = np.interp(
            np.linspace(log_snr[-1], log_snr[0], steps), log_snr, np.arange(num_timesteps)[::-1]
        )
        return _make_distinct(spaced.round().astype(np.int64), num_timesteps)
    raise ValueError(f"spacing: must be one of {', '.join(get_args(Spacing))}, not {spacing!r}")


def _make_distinct(timesteps: np.ndarray, num_timesteps: int) -> Int[Tensor, " n"]:
    """Make ascending timesteps distinct: raise repeated ones, then lower those beyond the end."""
    places = np.arange(len(timesteps))
    raised = np.maximum.accumulate(timesteps - places) + places
    return torch.from_numpy(np.minimum(raised, num_timesteps - len(places) + places))


def timesteps_from(timesteps: Int[Tensor, " n"], level: int) -> Int[Tensor, " m"]:
    """Return the timesteps of a sampler that starts at `level`: those below it, then `level`; ascending."""
    return torch.cat([timesteps[timesteps < level], timesteps.new_tensor([level])])
