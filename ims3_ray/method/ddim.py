"""Moving latents between noise levels: the DDIM step in both directions, inversion, guidance, ancestral
sampling.

    z      latents (B, C, H, W), scaled by the VAE's scaling factor
    ᾱ      cumulative alpha of a level; 1 is clean
    ε      predicted noise ε_θ(z, t, c)
    x̂0     predicted clean latents
    v      the variance channels of models that also predict the variance (DiT), −1 … 1 between the two bounds

Nothing is clipped. `predict(z, t, labels)` gives the model's whole output: C channels of noise, or 2·C with
the variance. A table of levels, `abar`, lies on the latents' device, and what a loop decides it decides on
Python's numbers: no step waits for the device.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

Latents = Float[Tensor, "B C H W"]
Labels = Int[Tensor, " B"]
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # timesteps (B,)
PredictAt = Callable[[Tensor, int, Tensor], Tensor]  # the whole batch at one timestep
# z, the model's output at t, t, ᾱ_from, ᾱ_to → z at ᾱ_to
Step = Callable[[Latents, Tensor, int, Tensor, Tensor], Latents]
Guidance = Callable[
    [Latents, int, Tensor, Tensor], Latents
]  # x̂0, t, ᾱ_from, ᾱ_to → what a step's latents gain


def abar_at(
    abar: Float[Tensor, " T"], timesteps: Int[Tensor, " B"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B 1 1 1"]:
    """ᾱ at `timesteps`, shaped to scale latents; float64 where neighbouring levels are subtracted."""
    return abar[timesteps].to(dtype)[:, None, None, None]


def add_noise(x: Latents, eps: Latents, *, abar: Tensor) -> Latents:
    """z_t = √ᾱ z_0 + √(1 − ᾱ) ε (Ho et al. 2020, eq. 4)."""
    return abar.sqrt() * x + (1 - abar).sqrt() * eps


def predicted_clean(x: Latents, eps: Latents, *, abar: Tensor) -> Latents:
    """x̂0 = (z − √(1 − ᾱ) ε) / √ᾱ (Eq. 1)."""
    return (x - (1 - abar).sqrt() * eps) / abar.sqrt()


def ddim_step(x: Latents, eps: Latents, *, abar_from: Tensor, abar_to: Tensor) -> Latents:
    """Move latents `x` between two noise levels, keeping their predicted noise `eps` fixed.

    Song et al. 2021, eq. 12 with sigma = 0; the paper's Eq. 2 and 3. abar_to > abar_from samples, abar_to <
    abar_from inverts.
    """
    return add_noise(predicted_clean(x, eps, abar=abar_from), eps, abar=abar_to)


def mix_noise(start: Latents, noise: Latents, *, share: float) -> Latents:
    """√(1 − share) z + √share ε: part of a start replaced by noise; a variance of 1 stays so."""
    return (1 - share) ** 0.5 * start + share**0.5 * noise


def noise_of(output: Tensor, channels: int) -> Latents:
    """The noise part (B, C, H, W) of a model's output of C or 2·C channels."""
    return output[:, :channels]


def broadcast_timestep(predict: Predict) -> PredictAt:
    """`predict` as the loops over timesteps ask it."""
    return lambda z, t, labels: predict(z, torch.full((len(z),), t, device=z.device), labels)


def invert(
    predict: PredictAt,
    z0: Latents,
    labels: Labels,
    grid: Int[Tensor, " levels"],
    abar: Float[Tensor, " T"],
) -> Float[Tensor, "B S C H W"]:
    """The inversion trajectory z^inv at s_1 … s_S of clean latents (Eq. 1–3): DDIM backwards, no guidance.

    z_{s_0} = z0 is taken as clean (ᾱ = 1) and the model asked there at t = 0; from then on ᾱ is the level's
    own.
    """
    z, trajectory = z0, []
    levels, abar_from = abar.to(torch.float32), torch.ones(1, device=z0.device)
    for s_from, s_to in itertools.pairwise(grid.tolist()):
        eps, abar_to = noise_of(predict(z, s_from, labels), z.shape[1]), levels[s_to]
        z = ddim_step(z, eps, abar_from=abar_from, abar_to=abar_to)
        trajectory.append(z)
        abar_from = abar_to
    return torch.stack(trajectory, dim=1)


def guided(conditional: Tensor, unconditional: Tensor, *, scale: float, channels: int) -> Tensor:
    """Classifier-free guidance on the first `channels` channels: u + scale · (c − u) (Ho & Salimans 2022).

    The other channels stay the conditional ones. DiT's published sampler guides 3 of its 4 latent channels,
    diffusers' pipeline all 4; the variance channels are never guided.
    """
    first = unconditional[:, :channels] + scale * (conditional[:, :channels] - unconditional[:, :channels])
    return torch.cat([first, conditional[:, channels:]], dim=1)


def with_guidance(predict: Predict, null_label: int, *, scale: float, channels: int) -> Predict:
    """`predict` under guidance: conditional and unconditional halves as one doubled batch."""

    def doubled(z: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        both = predict(
            torch.cat([z, z]),
            torch.cat([timesteps, timesteps]),
            torch.cat([labels, torch.full_like(labels, null_label)]),
        )
        return guided(*both.chunk(2), scale=scale, channels=channels)

    return predict if scale == 1 else doubled


def posterior_variance(*, abar_from: Tensor, abar_to: Tensor) -> tuple[Tensor, Tensor]:
    """β and β̃ of a step between two levels: the bounds of its variance (Ho et al. 2020, eq. 7)."""
    beta = 1 - abar_from / abar_to
    return beta, beta * (1 - abar_to) / (1 - abar_from)


def posterior_mean(x: Latents, x0: Latents, *, abar_from: Tensor, abar_to: Tensor) -> Latents:
    """Mean of q(z_to | z_from = x, z_0 = x0) (Ho et al. 2020, eq. 7)."""
    beta, _ = posterior_variance(abar_from=abar_from, abar_to=abar_to)
    return (abar_to.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - abar_to) * x) / (1 - abar_from)


def predicted_log_variance(v: Latents, *, abar_from: Tensor, abar_to: Tensor) -> Latents:
    """log of the predicted variance: v lies between log β̃ and log β (Nichol & Dhariwal 2021, eq. 15)."""
    beta, beta_tilde = posterior_variance(abar_from=abar_from, abar_to=abar_to)
    share = (v + 1) / 2
    return share * beta.log() + (1 - share) * beta_tilde.clamp_min(1e-20).log()


def ancestral_step(
    x: Latents, output: Tensor, noise: Latents | None, *, abar_from: Tensor, abar_to: Tensor
) -> Latents:
    """One DDPM step from `abar_from` to the cleaner `abar_to` with fresh `noise` (Ho et al. 2020, alg. 2).

    The variance is the predicted one where the model gives it (2·C output channels), else β̃. Without `noise`
    the step gives the mean, as the last does, at abar_to = 1.
    """
    channels, levels = x.shape[1], {"abar_from": abar_from, "abar_to": abar_to}
    mean = posterior_mean(x, predicted_clean(x, noise_of(output, channels), abar=abar_from), **levels)
    if noise is None:
        return mean
    if output.shape[1] == 2 * channels:
        log_variance = predicted_log_variance(output[:, channels:], **levels)
        return mean + (0.5 * log_variance).exp() * noise
    _, beta_tilde = posterior_variance(**levels)
    return mean + beta_tilde.sqrt() * noise


def descending_levels(
    timesteps: Int[Tensor, " n"], abar: Float[Tensor, " T"]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(t, ᾱ_from, ᾱ_to) for every step of a sampler, from the noisiest respaced timestep down to clean.

    Gathered in `abar`'s float64, given in float32, as latents are: that moves a factor of a step's mean by
    6e-6 at most with 50 steps, with 1000 by 2e-4, and its deviation by 2e-6.
    """
    levels = torch.cat([abar.new_ones(1), abar[timesteps]]).to(torch.float32)
    for i, t in reversed(list(enumerate(timesteps.tolist()))):
        yield t, levels[i + 1], levels[i]


def sample(
    step: Step,
    predict: PredictAt,
    z: Latents,
    labels: Labels,
    timesteps: Int[Tensor, " n"],
    abar: Float[Tensor, " T"],
    push: Guidance | None = None,
) -> Latents:
    """Clean latents from `z` at the level of the last of `timesteps`, by a `step` from each of them."""
    for t, abar_from, abar_to in descending_levels(timesteps, abar):
        output = predict(z, t, labels)
        before, z = z, step(z, output, t, abar_from, abar_to)
        if push:
            x0 = predicted_clean(before, noise_of(output, z.shape[1]), abar=abar_from)
            z = z + push(x0, t, abar_from, abar_to)
    return z


def sample_ancestral(
    predict: PredictAt,
    z: Latents,
    labels: Labels,
    timesteps: Int[Tensor, " n"],
    abar: Float[Tensor, " T"],
    noise: Callable[[], Latents],
    push: Guidance | None = None,
) -> Latents:
    """`sample` by random steps (Ho et al. 2020, alg. 2); `noise()` gives each step's noise."""
    last = int(timesteps[0])

    def step(z: Latents, output: Tensor, t: int, abar_from: Tensor, abar_to: Tensor) -> Latents:
        fresh = None if t == last else noise()
        return ancestral_step(z, output, fresh, abar_from=abar_from, abar_to=abar_to)

    return sample(step, predict, z, labels, timesteps, abar, push)


def sample_ddim(
    predict: PredictAt,
    z: Latents,
    labels: Labels,
    timesteps: Int[Tensor, " n"],
    abar: Float[Tensor, " T"],
    push: Guidance | None = None,
) -> Latents:
    """`sample` by deterministic steps (Song et al. 2021, eq. 12 with sigma = 0)."""

    def step(z: Latents, output: Tensor, t: int, abar_from: Tensor, abar_to: Tensor) -> Latents:  # noqa: ARG001
        return ddim_step(z, noise_of(output, z.shape[1]), abar_from=abar_from, abar_to=abar_to)

    return sample(step, predict, z, labels, timesteps, abar, push)
