import pytest
import torch

from ims3_ray.method import ddim
from ims3_ray.method.schedule import alphas_bar, space_timesteps, timesteps_from
from ims3_ray.models.generator import dpm_stepper

ABAR, LABELS = alphas_bar(), torch.zeros(3, dtype=torch.int64)


def draw(seed=0):
    return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


@ddim.broadcast_timestep
def mixture(z, timesteps, labels):
    """The exact noise prediction, beside channels of variance, for data of deviation 0.3 around −1 and 1."""
    abar = ddim.abar_at(ABAR, timesteps)
    variance = abar * 0.3**2 + 1 - abar
    x0 = (abar.sqrt() * 0.3**2 * z + (1 - abar) * (abar.sqrt() * z / variance).tanh()) / variance
    eps = (z - abar.sqrt() * x0) / (1 - abar).sqrt()
    return torch.cat([eps, torch.full_like(eps, 9.0)], dim=1)


def dpm(z, timesteps):
    return ddim.sample(dpm_stepper(timesteps), mixture, z, LABELS, timesteps, ABAR)


def ddim_samples(z, timesteps):
    return ddim.sample(ddim.ddim_stepper, mixture, z, LABELS, timesteps, ABAR)


@pytest.mark.parametrize("steps", [15, 25])
def test_dpm_is_nearer_to_the_exact_path_than_ddim_with_twice_the_steps(steps):
    """On timesteps even in log_snr. On timesteps even in t it is worse than DDIM."""

    def error(z):
        return (z - exact).norm()

    exact = ddim_samples(draw(), torch.arange(1000))
    once, twice = (ddim_samples(draw(), space_timesteps(n)) for n in (steps, 2 * steps))
    assert error(dpm(draw(), space_timesteps(steps, "log_snr"))) < error(twice)
    assert error(dpm(draw(), space_timesteps(steps))) > error(once)


def test_dpm_with_two_steps_equals_ddim():
    """The first and the last step are of first order.

    From t = 500: diffusers keeps its levels in float32, and at t = 999, where 1/√ᾱ is 157, one rounding of a
    level moves the result by 2e-5.
    """
    timesteps, z = torch.tensor([100, 500]), draw().double()
    ours = ddim_samples(z, timesteps)
    torch.testing.assert_close(dpm(z, timesteps), ours, atol=5e-6, rtol=0)


def test_dpm_follows_the_path_from_an_intermediate_level():
    start = ddim.add_noise(torch.ones(3, 4, 2, 2), draw(), abar=ABAR[400].float())
    exact = ddim_samples(start, timesteps_from(torch.arange(1000), 400))
    found = dpm(start, timesteps_from(space_timesteps(50, "log_snr"), 400))
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


def test_batches_do_not_affect_each_other():
    timesteps = space_timesteps(10, "log_snr")
    single = dpm(draw(1), timesteps)
    dpm(draw(), timesteps)
    assert torch.equal(dpm(draw(1), timesteps), single)
