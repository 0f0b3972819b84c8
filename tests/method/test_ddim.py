import pytest
import torch
from crossings import META, Sent
from diffusers import DDIMScheduler, DDPMScheduler
from tiny_generator import draw

from ims3_ray.method import ddim
from ims3_ray.method.schedule import alphas_bar, inversion_grid, space_timesteps

ABAR = alphas_bar()
LABELS = torch.zeros(2, dtype=torch.int64)
LEVELS = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)


def test_ddim_step_is_reversible_and_an_euler_step_in_the_variance_exploding_variable():
    x, eps = draw(2, 4, 3, 3).double(), draw(2, 4, 3, 3, seed=1).double()
    here, there = LEVELS
    noisier = ddim.ddim_step(x, eps, abar_from=here, abar_to=there)
    torch.testing.assert_close(ddim.ddim_step(noisier, eps, abar_from=there, abar_to=here), x)
    sigma = lambda abar: ((1 - abar) / abar).sqrt()  # noqa: E731
    expected = x / here.sqrt() + (sigma(there) - sigma(here)) * eps
    torch.testing.assert_close(noisier / there.sqrt(), expected)


def test_predicted_clean_inverts_add_noise_without_clipping():
    x, eps, abar = 50 * draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1), torch.tensor(0.3)
    torch.testing.assert_close(ddim.predicted_clean(ddim.add_noise(x, eps, abar=abar), eps, abar=abar), x)


def gaussian_model(deviation):
    """The exact noise prediction for normal data with `deviation`."""

    @ddim.broadcast_timestep
    def predict(z, timesteps, labels):
        abar = ddim.abar_at(ABAR, timesteps)
        return z * (1 - abar).sqrt() / (abar * deviation**2 + 1 - abar)

    return predict


def test_inversion_of_gaussian_data_matches_the_closed_form_and_sampling_undoes_it():
    """The probability flow scales normal data: z_t = z_0 · √(ᾱ + (1 − ᾱ)/s²), s the data's deviation."""
    z0, deviation = draw(2, 4, 2, 2).double() * 0.5, 0.5
    grid, model = inversion_grid(999), gaussian_model(deviation)
    trajectory = ddim.invert(model, z0, LABELS, grid, ABAR)
    for k in (99, 499, 998):
        abar = ABAR[grid[k + 1]]
        expected = z0 * (abar + (1 - abar) / deviation**2).sqrt()
        torch.testing.assert_close(trajectory[:, k], expected, rtol=0.02, atol=0.01)
    back = ddim.sample(ddim.ddim_stepper, model, trajectory[:, -1], LABELS, torch.arange(1000), ABAR)
    torch.testing.assert_close(back, z0, rtol=0.02, atol=0.01)


def test_inversion_starts_at_timestep_zero_and_keeps_the_class():
    calls = []

    def predict(z, t, labels):
        calls.append((t, labels.tolist()))
        return torch.zeros_like(z)

    ddim.invert(predict, draw(2, 4, 2, 2), torch.tensor([3, 5]), inversion_grid(4), ABAR)
    assert calls == [(0, [3, 5]), (250, [3, 5]), (500, [3, 5]), (749, [3, 5])]


@pytest.mark.parametrize(("sampler", "channels", "tolerance"), [("ddim", 4, 1e-4), ("ancestral", 8, 1e-3)])
def test_sampling_equals_diffusers(sampler, channels, tolerance):
    """Ancestral sampling with predicted variance, in a plausible range."""

    def predict(z, t, labels):
        return torch.cat([torch.tanh(z + t / 1000), torch.sin(3 * z)], dim=1)[:, :channels]

    z, timesteps = draw(2, 4, 3, 3), space_timesteps(50, "leading")
    options = {"beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "leading"}
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    if sampler == "ddim":
        scheduler, noise = DDIMScheduler(steps_offset=0, set_alpha_to_one=True, **options), {}
        step = ddim.ddim_stepper
    else:
        scheduler, noise = DDPMScheduler(variance_type="learned_range", **options), {"generator": draws[0]}
        step = ddim.ancestral_stepper(timesteps, lambda: torch.randn(z.shape, generator=draws[1]))
    scheduler.set_timesteps(50)
    theirs = z
    for t in scheduler.timesteps:
        theirs = scheduler.step(predict(theirs, int(t), None), t, theirs, **noise).prev_sample
    ours = ddim.sample(step, predict, z, LABELS, timesteps, ABAR)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels", [3, 4])
def test_guidance_changes_only_the_first_channels(channels):
    conditional, unconditional = draw(2, 8, 2, 2), draw(2, 8, 2, 2, seed=1)
    both = ddim.classifier_free_guidance(conditional, unconditional, scale=4.0, channels=channels)
    expected = unconditional + 4 * (conditional - unconditional)
    torch.testing.assert_close(both[:, :channels], expected[:, :channels])
    assert torch.equal(both[:, channels:], conditional[:, channels:])


def test_guidance_doubles_the_batch_unless_the_scale_is_one():
    calls = []

    def predict(z, timesteps, labels):
        calls.append(labels.tolist())
        return labels[:, None, None, None] * torch.ones_like(z)

    assert ddim.with_guidance(predict, 9, scale=1.0, channels=4) is predict
    guided = ddim.with_guidance(predict, 9, scale=2.0, channels=4)
    out = guided(draw(2, 4, 2, 2), torch.ones(2), torch.tensor([1, 2]))
    assert calls == [[1, 2, 9, 9]]
    assert out[:, 0, 0, 0].tolist() == [9 + 2 * (1 - 9), 9 + 2 * (2 - 9)]


def test_predicted_variance_is_between_its_bounds():
    here, there = ABAR[500].float(), ABAR[480].float()
    beta, beta_tilde = ddim.posterior_variance(abar_from=here, abar_to=there)
    v = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None]
    variance = ddim.predicted_log_variance(v, abar_from=here, abar_to=there).exp().flatten()
    torch.testing.assert_close(variance, torch.stack([beta_tilde, (beta * beta_tilde).sqrt(), beta]))


@pytest.mark.parametrize("loop", ["ancestral", "ddim", "invert"])
def test_no_step_synchronises_with_the_device(loop):
    """The table's rows are sent once for any number of steps, and no model value is read back."""

    def count_transfers(steps):
        z, abar, timesteps = torch.empty(2, 4, 3, 3, device=META), ABAR.to(META), space_timesteps(steps)
        model = ddim.broadcast_timestep(lambda z, t, labels: torch.cat([z, z], 1) * t[:, None, None, None])
        model = ddim.switch_predictor((200, 700), inside=model, outside=model)
        step = ddim.ddim_stepper
        if loop == "ancestral":
            step = ddim.ancestral_stepper(timesteps, lambda: torch.empty_like(z))
        with Sent() as sent:
            if loop == "invert":
                ddim.invert(model, z, LABELS.to(META), inversion_grid(steps), abar)
            else:
                ddim.sample(step, model, z, LABELS.to(META), timesteps, abar)
        return sent.count

    assert count_transfers(20) == count_transfers(3) <= 1


def test_predictor_is_switched_at_the_ends_of_the_interval():
    predict = ddim.switch_predictor((200, 600), inside=lambda z, *_: z + 1, outside=lambda z, *_: z)
    assert [predict(torch.zeros(1), t, torch.zeros(1)) for t in (199, 200, 600, 601)] == [0, 1, 1, 0]
