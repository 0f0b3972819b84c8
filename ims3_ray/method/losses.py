"""Training losses per image, unweighted. The trainer sums L = L_diff + λ_IM L_IM (Eq. 4–7).

| paper     | here               | meaning                                                   |
|-----------|--------------------|-----------------------------------------------------------|
| z_t       | `z_t`, `x`         | latents (B, C, H, W) at noise level t                     |
| ε_θ, ε    | `predicted`, `eps` | predicted noise, added noise                              |
| z̃_s       | `stepped`          | z_t after the DDIM step to grid point s                   |
| z_s^inv   | `inverted`         | stored inversion of the same image at s                   |
| σ(a, b)   |                    | cosine similarity of flattened tensors                    |
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .ddim import (
    Labels,
    Latents,
    Predict,
    abar_at,
    add_noise,
    noise_of,
    posterior_mean,
    posterior_variance,
    predicted_clean,
    predicted_log_variance,
)

PerImage = Float[Tensor, " B"]
Timesteps = Int[Tensor, " B"]


def diffusion_loss(predicted: Latents, noise: Latents) -> PerImage:
    """L_diff = ‖ε_θ(z_t, c) − ε‖², mean over an image's values (Eq. 4–7; Ho et al. 2020, eq. 14)."""
    return (predicted - noise).square().flatten(1).mean(1)


def variational_loss(
    output: Tensor, x: Latents, z0: Latents, timesteps: Timesteps, abar: Float[Tensor, " T"]
) -> PerImage:
    """KL divergence of the true and the predicted step z_t → z_{t−1}, bits per value; trains the variance.

    L_vlb of the hybrid objective (Nichol & Dhariwal 2021), as DiT uses it. `output` (B, 2·C, H, W) holds
    noise and variance; the mean is detached. t must be at least 1: the likelihood term of t = 0 is not
    implemented. Computed in float64, because β is a difference of neighbouring levels.
    """
    channels = x.shape[1]
    abar_from, abar_to = (abar_at(abar, timesteps - down, torch.float64) for down in (0, 1))
    eps = noise_of(output, channels).detach()
    true_mean = posterior_mean(x, z0, abar_from=abar_from, abar_to=abar_to)
    mean = posterior_mean(x, predicted_clean(x, eps, abar=abar_from), abar_from=abar_from, abar_to=abar_to)
    log_variance = predicted_log_variance(output[:, channels:], abar_from=abar_from, abar_to=abar_to)
    true_log_variance = posterior_variance(abar_from=abar_from, abar_to=abar_to)[1].log()
    kl = 0.5 * (
        log_variance
        - true_log_variance
        + (true_log_variance - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
        - 1
    )
    return (kl.flatten(1).mean(1) / math.log(2)).to(x.dtype)


def matching_loss(stepped: Latents, inverted: Latents) -> PerImage:
    """L_IM per image: 1 − σ(z̃_s, z_s^inv) (Eq. 4–7)."""
    return 1 - cosine_similarity(stepped.flatten(1), inverted.flatten(1), dim=1)


def at_level_of(inverted: Latents, clean: Latents, z0: Latents, *, abar: Tensor) -> Latents:
    """√ᾱ_s x̂0 + √(1 − ᾱ_s) ε^inv: x̂0 noised to the inversion's level by the inversion's own noise.

    ε^inv = (z_s^inv − √ᾱ_s z_0) / √(1 − ᾱ_s), so the result is z_s^inv + √ᾱ_s (x̂0 − z_0). It reads "match z_t
    with z_t^inv" literally at one level, and has a gradient, which z_t has not.
    """
    return inverted + abar.sqrt() * (clean - z0)


def masked_mean(values: PerImage, mask: Bool[Tensor, " B"], total: int) -> Float[Tensor, ""]:
    """Sum `values` where `mask` is true, divided by `total`: one part's share of the global batch's mean.

    Returns 0 if `total` is 0, when no image of the global batch has the term.
    """
    return (values * mask).sum() / max(total, 1)


def one_step_pair(
    predict: Predict,
    z0: Latents,
    z_t: Latents,
    eps: Latents,
    timesteps: Timesteps,
    labels: Labels,
    abar: Float[Tensor, " T"],
) -> tuple[Latents, Latents]:
    """Return (z̃_{t−1}, z_{t+1}^inv) as the published code pairs them. For reproduction only.

    z̃_{t−1} is the mean of q(z_{t−1} | z_t, x̂0). z_{t+1}^inv treats the clean latents as if they were at
    level t, clips their x̂0 to [−1, 1] and inverts them one step up (to ᾱ = 0 from the last level). The two
    are at different levels and on no trajectory. t is at least 1; `labels` are those of the inversion's own
    pass.
    """
    z = z0.double()
    levels = torch.cat([abar, abar.new_zeros(1)])
    below, here, above = (abar_at(levels, timesteps + up, torch.float64) for up in (-1, 0, 1))
    with torch.no_grad():
        clean = predicted_clean(z, noise_of(predict(z0, timesteps, labels), z0.shape[1]), abar=here)
        clipped = clean.clamp(-1, 1)
        inverted = add_noise(clipped, (z - here.sqrt() * clipped) / (1 - here).sqrt(), abar=above)
    stepped = posterior_mean(z_t, predicted_clean(z_t, eps, abar=here), abar_from=here, abar_to=below)
    return stepped.to(z0.dtype), inverted.to(z0.dtype)


def all_pairs_loss(stepped: Latents, inverted: Latents) -> PerImage:
    """1 − mean of σ(z̃_i, z_j^inv) over all images j, as in the published code. For reproduction only.

    B − 1 of an image's B pairs pull it towards other images. Needs the whole batch.
    """
    return 1 - _similarities(stepped, inverted).mean(1)


def representativeness_loss(predicted: Latents, memory: Float[Tensor, "M C H W"]) -> PerImage:
    """1 − min of σ(x̂0, z) over real latents z of the same class (Gu et al. 2024, eq. 5)."""
    return 1 - _similarities(predicted, memory).amin(1)


def diversity_loss(predicted: Latents, memory: Float[Tensor, "M C H W"]) -> PerImage:
    """max of σ(x̂0, ẑ) over earlier predictions ẑ of the same class (Gu et al. 2024, eq. 6)."""
    return _similarities(predicted, memory).amax(1)


def _similarities(a: Tensor, b: Tensor) -> Float[Tensor, "B M"]:
    return cosine_similarity(a.flatten(1)[:, None], b.flatten(1)[None], dim=2)
