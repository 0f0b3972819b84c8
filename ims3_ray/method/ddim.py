"""DDIM and DDPM steps between noise levels, inversion, sampling and classifier-free guidance.

| here | meaning |
|---|---|
| z, x | latents (B, C, H, W), scaled by the VAE's scaling factor |
| ᾱ, abar | cumulative alpha of a noise level; 1 is clean |
| ε, eps | predicted noise ε_θ(z, t, c) |
| x̂0, x0 | predicted clean latents |
| v | variance channels of models that predict the variance (DiT): −1 … 1 between the two bounds |

Nothing is clipped. `predict(z, t, labels)` returns the whole model output: C noise channels, or 2·C with the
variance. The table `abar` is on the latents' device. Loops branch on Python numbers only, so no step waits
for the device.
"""

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Latents = Float[Tensor, "B C H W"]
Labels = Int[Tensor, " B"]
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # timesteps (B,)
PredictAt = Callable[[Tensor, int, Tensor], Tensor]  # the whole batch at one timestep
# (z, model output at t, t, ᾱ_from, ᾱ_to) → z at ᾱ_to
Step = Callable[[Latents, Tensor, int, Tensor, Tensor], Latents]


def abar_at(
    abar: Float[Tensor, " T"], timesteps: Int[Tensor, " B"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B 1 1 1"]:
    """Return ᾱ at `timesteps`, shaped to scale latents. Use float64 if neighbouring levels are subtracted."""
    return abar[timesteps].to(dtype)[:, None, None, None]


def add_noise(x: Latents, eps: Latents, *, abar: Tensor) -> Latents:
    """z_t = √ᾱ z_0 + √(1 − ᾱ) ε (Ho et al. 2020, eq. 4)."""
    return abar.sqrt() * x + (1 - abar).sqrt() * eps


def predicted_clean(x: Latents, eps: Latents, *, abar: Tensor) -> Latents:
    """x̂0 = (z − √(1 − ᾱ) ε) / √ᾱ (Eq. 1–3)."""
    return (x - (1 - abar).sqrt() * eps) / abar.sqrt()


def ddim_step(x: Latents, eps: Latents, *, abar_from: Tensor, abar_to: Tensor) -> Latents:
    """Move latents `x` between two noise levels, keeping their predicted noise `eps` fixed.

    Song et al. 2021, eq. 12 with sigma = 0; the paper's Eq. 1–3. abar_to > abar_from samples, abar_to <
    abar_from inverts.
    """
    return add_noise(predicted_clean(x, eps, abar=abar_from), eps, abar=abar_to)


def mix_noise(start: Latents, noise: Latents, *, share: float) -> Latents:
    """Replace a share of `start` by noise: √(1 − share) z + √share ε. Unit variance stays unit variance."""
    return (1 - share) ** 0.5 * start + share**0.5 * noise


def noise_of(output: Tensor, channels: int) -> Latents:
    """Return the noise channels (B, C, H, W) of a model output with C or 2·C channels."""
    return output[:, :channels]


def broadcast_timestep(predict: Predict) -> PredictAt:
    """Adapt `predict` to one integer timestep for the whole batch."""
    return lambda z, t, labels: predict(z, torch.full((len(z),), t, device=z.device), labels)


def invert(
    predict: PredictAt, z0: Latents, labels: Labels, grid: Int[Tensor, " levels"], abar: Float[Tensor, " T"]
) -> Float[Tensor, "B S C H W"]:
    """Compute the inversion trajectory z^inv at s_1 … s_S (Eq. 1–3): DDIM towards noise, no guidance.

    `z0` counts as clean (ᾱ = 1) at s_0, where the model is called with t = 0; other levels have their own ᾱ.
    """
    z, trajectory = z0, []
    levels, abar_from = abar.to(torch.float32), torch.ones(1, device=z0.device)
    for s_from, s_to in itertools.pairwise(grid.tolist()):
        eps, abar_to = noise_of(predict(z, s_from, labels), z.shape[1]), levels[s_to]
        z = ddim_step(z, eps, abar_from=abar_from, abar_to=abar_to)
        trajectory.append(z)
        abar_from = abar_to
    return torch.stack(trajectory, dim=1)


def classifier_free_guidance(
    conditional: Tensor, unconditional: Tensor, *, scale: float, channels: int
) -> Tensor:
    """Guide the first `channels` channels: u + scale · (c − u) (Ho & Salimans 2022).

    The other channels stay conditional. DiT's sampler guides 3 of 4 latent channels, diffusers' pipeline all
    4; variance channels are never guided.
    """
    first = unconditional[:, :channels] + scale * (conditional[:, :channels] - unconditional[:, :channels])
    return torch.cat([first, conditional[:, channels:]], dim=1)


def with_guidance(predict: Predict, null_label: int, *, scale: float, channels: int) -> Predict:
    """Wrap `predict` in guidance; conditional and unconditional inputs form one doubled batch."""

    def doubled(z: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        both = predict(
            torch.cat([z, z]),
            torch.cat([timesteps, timesteps]),
            torch.cat([labels, torch.full_like(labels, null_label)]),
        )
        return classifier_free_guidance(*both.chunk(2), scale=scale, channels=channels)

    return predict if scale == 1 else doubled


def switch_predictor(interval: tuple[int, ...], *, inside: PredictAt, outside: PredictAt) -> PredictAt:
    """Use `inside` for timesteps of the interval, ends included, `outside` for the others.

    For example classifier-free guidance in a limited interval (Kynkäänniemi et al. 2024).
    """

    def predict(z: Tensor, t: int, labels: Tensor) -> Tensor:
        return (inside if interval[0] <= t <= interval[1] else outside)(z, t, labels)

    return predict


def posterior_variance(*, abar_from: Tensor, abar_to: Tensor) -> tuple[Tensor, Tensor]:
    """Return β and β̃ of a step, the bounds of its variance (Ho et al. 2020, eq. 7)."""
    beta = 1 - abar_from / abar_to
    return beta, beta * (1 - abar_to) / (1 - abar_from)


def posterior_mean(x: Latents, x0: Latents, *, abar_from: Tensor, abar_to: Tensor) -> Latents:
    """Return the mean of q(z_to | z_from = x, z_0 = x0) (Ho et al. 2020, eq. 7)."""
    beta, _ = posterior_variance(abar_from=abar_from, abar_to=abar_to)
    return (abar_to.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - abar_to) * x) / (1 - abar_from)


def predicted_log_variance(v: Latents, *, abar_from: Tensor, abar_to: Tensor) -> Latents:
    """Interpolate between log β̃ (v = −1) and log β (v = 1) (Nichol & Dhariwal 2021, eq. 15)."""
    beta, beta_tilde = posterior_variance(abar_from=abar_from, abar_to=abar_to)
    share = (v + 1) / 2
    return share * beta.log() + (1 - share) * beta_tilde.clamp_min(1e-20).log()


def sample(
    step: Step,
    predict: PredictAt,
    z: Latents,
    labels: Labels,
    timesteps: Int[Tensor, " n"],
    abar: Float[Tensor, " T"],
) -> Latents:
    """Denoise `z`, which is at the level of the last of `timesteps`, with one `step` per timestep.

    Levels are float32, as latents are. That changes a factor of a step's mean by at most 6e-6 at 50 steps
    (2e-4 at 1000) and its deviation by 2e-6.
    """
    levels = torch.cat([abar.new_ones(1), abar[timesteps]]).to(torch.float32)
    for i, t in reversed(list(enumerate(timesteps.tolist()))):
        z = step(z, predict(z, t, labels), t, levels[i + 1], levels[i])
    return z


def ddim_stepper(z: Latents, output: Tensor, _t: int, abar_from: Tensor, abar_to: Tensor) -> Latents:
    """Take a deterministic step of `sample` (Song et al. 2021, eq. 12 with sigma = 0)."""
    return ddim_step(z, noise_of(output, z.shape[1]), abar_from=abar_from, abar_to=abar_to)


def ancestral_stepper(timesteps: Int[Tensor, " n"], noise: Callable[[], Latents]) -> Step:
    """Return the DDPM step of `sample` (Ho et al. 2020, alg. 2); `noise()` returns each step's noise.

    The variance is the predicted one for models with 2·C output channels, else β̃. The last step returns the
    mean.
    """
    last = int(timesteps[0])

    def step(z: Latents, output: Tensor, t: int, abar_from: Tensor, abar_to: Tensor) -> Latents:
        channels, levels = z.shape[1], {"abar_from": abar_from, "abar_to": abar_to}
        mean = posterior_mean(z, predicted_clean(z, noise_of(output, channels), abar=abar_from), **levels)
        if t == last:
            return mean
        if output.shape[1] == 2 * channels:
            log_variance = predicted_log_variance(output[:, channels:], **levels)
            return mean + (0.5 * log_variance).exp() * noise()
        return mean + posterior_variance(**levels)[1].sqrt() * noise()

    return step
