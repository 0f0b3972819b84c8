import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ims3_ray.method.schedule import alphas_bar, grid_index_below, inversion_grid, space_timesteps


def test_alphas_bar_equal_the_linear_schedule_of_diffusers():
    theirs = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).alphas_cumprod
    torch.testing.assert_close(alphas_bar().float(), theirs, rtol=1e-5, atol=1e-8)


def test_inversion_grid_runs_from_zero_to_the_last_timestep():
    assert inversion_grid(10).tolist() == [0, 100, 200, 300, 400, 500, 599, 699, 799, 899, 999]
    assert inversion_grid(999).tolist() == list(range(1000))


def test_timestep_is_matched_at_the_largest_grid_point_below():
    t = torch.tensor([1, 100, 101, 200, 201, 999])
    assert grid_index_below(t, inversion_grid(10)).tolist() == [0, 0, 1, 1, 2, 9]


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_spaced_timesteps_equal_diffusers(spacing, steps):
    scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert space_timesteps(steps, spacing).tolist() == scheduler.timesteps.flip(0).tolist()


def test_linspace_timesteps_equal_dit_for_every_number_of_steps():
    """Values of DiT's space_timesteps: 450 for 21 steps, where np.linspace rounds to 449."""
    assert space_timesteps(21).tolist() == [*range(0, 451, 50), *range(499, 1000, 50)]
    total = sum(int((torch.arange(n) * space_timesteps(n)).sum()) for n in range(2, 1001))
    assert total == 111_083_476_076


@pytest.mark.parametrize("steps", [2, 10, 15, 25, 50, 300, 1000])
def test_log_snr_timesteps_are_distinct_and_end_at_the_last(steps):
    timesteps = space_timesteps(steps, "log_snr")
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (0, 999, steps)
    assert (timesteps.diff() >= 1).all()


def test_log_snr_falls_evenly():
    """Except near t = 0, where neighbouring timesteps are farther apart than the requested steps."""
    logit = torch.logit(alphas_bar())
    falls = -logit[space_timesteps(15, "log_snr")].diff()
    torch.testing.assert_close(falls[2:], falls[2:].mean().expand(12), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "call", [lambda: inversion_grid(0), lambda: inversion_grid(1000), lambda: space_timesteps(1)]
)
def test_impossible_grids_are_refused(call):
    with pytest.raises(ValueError, match=r"(points|steps): must be between"):
        call()
