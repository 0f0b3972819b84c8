import pytest
import torch
from crossings import META, Sent
from diffusers import DDIMScheduler, DDPMScheduler

from ims3_ray.method import ddim
from ims3_ray.method.guidance import switch_predictor
from ims3_ray.method.schedule import alphas_bar, inversion_grid, space_timesteps

ABAR = alphas_bar()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_step_back_undoes_step():
    x, eps = draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1)
    here, there = torch.tensor(0.7), torch.tensor(0.2)
    noisier = ddim.ddim_step(x, eps, abar_from=here, abar_to=there)
    torch.testing.assert_close(ddim.ddim_step(noisier, eps, abar_from=there, abar_to=here), x)


def test_a_step_is_an_euler_step_in_the_variance_exploding_variable():
    x, eps = draw(2, 4, 3, 3).double(), draw(2, 4, 3, 3, seed=1).double()
    here, there = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    stepped = ddim.ddim_step(x, eps, abar_from=here, abar_to=there) / there.sqrt()
    sigma = lambda abar: ((1 - abar) / abar).sqrt()  # noqa: E731
    torch.testing.assert_close(stepped, x / here.sqrt() + (sigma(there) - sigma(here)) * eps)


def test_noise_added_to_clean_latents_is_predicted_away():
    x, eps, abar = draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1), torch.tensor(0.3)
    torch.testing.assert_close(ddim.predicted_clean(ddim.add_noise(x, eps, abar=abar), eps, abar=abar), x)


def gaussian_model(deviation):
    """The exact noise prediction for data that are normal with `deviation`."""

    @ddim.broadcast_timestep
    def predict(z, timesteps, labels):
        abar = ddim.abar_at(ABAR, timesteps)
        return z * (1 - abar).sqrt() / (abar * deviation**2 + 1 - abar)

    return predict


def test_inverting_gaussian_data_matches_the_closed_form():
    """For normal data the probability flow scales: z_t = z_0 · √(ᾱ + (1 − ᾱ)/s²), s the data's deviation."""
    z0, deviation = draw(3, 4, 2, 2).double() * 0.5, 0.5
    grid = inversion_grid(999)
    found = ddim.invert(gaussian_model(deviation), z0, torch.zeros(3, dtype=torch.int64), grid, ABAR)
    for k in (99, 499, 998):
        abar = ABAR[grid[k + 1]]
        torch.testing.assert_close(
            found[:, k], z0 * (abar + (1 - abar) / deviation**2).sqrt(), rtol=0.02, atol=0.01
        )


def test_inversion_then_ddim_sampling_gives_the_image_back():
    z0 = draw(2, 4, 2, 2) * 0.5
    labels = torch.zeros(2, dtype=torch.int64)
    noise = ddim.invert(gaussian_model(0.5), z0, labels, inversion_grid(999), ABAR)[:, -1]
    back = ddim.sample_ddim(gaussian_model(0.5), noise, labels, torch.arange(1000), ABAR)
    torch.testing.assert_close(back, z0, rtol=0.02, atol=0.01)


def test_inversion_asks_first_at_zero_and_never_leaves_the_class():
    asked = []

    def predict(z, t, labels):
        asked.append((t, labels.tolist()))
        return torch.zeros_like(z)

    ddim.invert(predict, draw(2, 4, 2, 2), torch.tensor([3, 5]), inversion_grid(4), ABAR)
    assert asked == [(0, [3, 5]), (250, [3, 5]), (500, [3, 5]), (749, [3, 5])]


def test_nothing_is_clipped():
    far = torch.full((1, 4, 2, 2), 50.0)
    kept = ddim.ddim_step(far, torch.zeros_like(far), abar_from=torch.tensor(0.5), abar_to=torch.tensor(1.0))
    assert kept.min() > 50


def random_model(channels):
    """A fixed function with predicted variance, noise in a plausible range."""

    def predict(z, t, labels):
        eps = torch.tanh(z + t / 1000)
        return torch.cat([eps, torch.sin(3 * z)], dim=1)[:, :channels]

    return predict


def test_ddim_sampling_is_that_of_diffusers():
    predict, z = random_model(4), draw(2, 4, 3, 3)
    scheduler = DDIMScheduler(
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=0,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(50)
    theirs = z
    for t in scheduler.timesteps:
        theirs = scheduler.step(predict(theirs, int(t), None), t, theirs).prev_sample
    ours = ddim.sample_ddim(
        predict, z, torch.zeros(2, dtype=torch.int64), space_timesteps(50, "leading"), ABAR
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_ancestral_sampling_with_predicted_variance_is_that_of_diffusers():
    predict, z, steps = random_model(8), draw(2, 4, 3, 3), 20
    options = {"variance_type": "learned_range", "clip_sample": False, "timestep_spacing": "leading"}
    scheduler = DDPMScheduler(beta_schedule="linear", **options)
    scheduler.set_timesteps(steps)
    theirs, draws = z, torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        theirs = scheduler.step(predict(theirs, int(t), None), t, theirs, generator=draws).prev_sample
    draws = torch.Generator().manual_seed(7)
    ours = ddim.sample_ancestral(
        predict,
        z,
        torch.zeros(2, dtype=torch.int64),
        space_timesteps(steps, "leading"),
        ABAR,
        lambda: torch.randn(z.shape, generator=draws),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [3, 4])
def test_guidance_moves_the_named_channels_alone(channels):
    conditional, unconditional = draw(2, 8, 2, 2), draw(2, 8, 2, 2, seed=1)
    both = ddim.guided(conditional, unconditional, scale=4.0, channels=channels)
    expected = unconditional + 4 * (conditional - unconditional)
    torch.testing.assert_close(both[:, :channels], expected[:, :channels])
    assert torch.equal(both[:, channels:], conditional[:, channels:])


def test_guidance_of_one_asks_the_model_once_and_changes_nothing():
    predict = random_model(8)
    assert ddim.with_guidance(predict, 9, scale=1.0, channels=4) is predict


def test_guidance_asks_for_class_and_null_in_one_doubled_batch():
    asked = []

    def predict(z, timesteps, labels):
        asked.append(labels.tolist())
        return labels[:, None, None, None] * torch.ones_like(z)

    out = ddim.with_guidance(predict, 9, scale=2.0, channels=4)(
        draw(2, 4, 2, 2), torch.ones(2), torch.tensor([1, 2])
    )
    assert asked == [[1, 2, 9, 9]]
    assert out[:, 0, 0, 0].tolist() == [9 + 2 * (1 - 9), 9 + 2 * (2 - 9)]


def test_the_predicted_variance_lies_between_its_bounds():
    here, there = ABAR[500].float(), ABAR[480].float()
    beta, beta_tilde = ddim.posterior_variance(abar_from=here, abar_to=there)
    v = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None]
    found = ddim.predicted_log_variance(v, abar_from=here, abar_to=there).exp().flatten()
    torch.testing.assert_close(found, torch.stack([beta_tilde, (beta * beta_tilde).sqrt(), beta]))


@pytest.mark.parametrize("loop", ["ancestral", "ddim", "invert"])
def test_a_step_reads_nothing_off_its_device_and_sends_nothing_there(loop):
    """However many steps there are: the rows of the table are sent once, and the model's own values never."""

    def sent(steps):
        z, abar = torch.empty(2, 4, 3, 3, device=META), ABAR.to(META)
        labels = torch.zeros(2, dtype=torch.int64, device=META)
        model = ddim.broadcast_timestep(lambda z, t, labels: torch.cat([z, z], 1) * t[:, None, None, None])
        model = switch_predictor((200, 700), inside=model, outside=model)
        with Sent() as counted:
            if loop == "invert":
                ddim.invert(model, z, labels, inversion_grid(steps), abar)
            elif loop == "ddim":
                ddim.sample_ddim(model, z, labels, space_timesteps(steps), abar)
            else:
                ddim.sample_ancestral(
                    model, z, labels, space_timesteps(steps), abar, lambda: torch.empty_like(z)
                )
        return counted.count

    assert sent(20) == sent(3) <= 1
