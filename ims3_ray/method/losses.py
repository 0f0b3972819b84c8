"""The training losses, unweighted and per image: L = L_diff + λ_IM L_IM (Eq. 7) is summed by the trainer.

| paper     | here              | what                                                                   |
|-----------|-------------------|------------------------------------------------------------------------|
| z_t       | `z_t`, `x`        | latents (B, C, H, W) noised to level t                                 |
| ε_θ, ε    | `predicted`, `eps`| predicted noise, and the noise that was added                          |
| z̃_s       | `stepped`         | z_t after its deterministic DDIM step to the grid point s (Eq. 4)      |
| z_s^inv   | `inverted`        | the stored inversion of the same image at the same s                   |
| σ(a, b)   |                   | cosine similarity of flattened tensors                                 |
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
    """L_diff = ‖ε_θ(z_t, c) − ε‖², averaged over an image's values (Eq. 5; Ho et al. 2020, eq. 14)."""
    return (predicted - noise).square().flatten(1).mean(1)


def variational_loss(
    output: Tensor, x: Latents, z0: Latents, timesteps: Timesteps, abar: Float[Tensor, " T"]
) -> PerImage:
    """KL of the true and the predicted step z_t → z_{t−1}, in bits per value: it trains the variance alone.

    `output` (B, 2·C, H, W) holds noise and variance; the mean is detached (Nichol & Dhariwal 2021, L_vlb of
    the hybrid objective, as DiT uses it). t must be at least 1: the likelihood term of t = 0 is not defined
    here. Done in float64, as `abar` is given: β is the difference of neighbouring levels.
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


def matching_loss(stepped: Latents, inverted: Latents, metric: str = "cosine") -> PerImage:
    """Distance of z̃_s and z_s^inv of one image: 1 − σ (Eq. 6), or the mean L1 or L2 distance (ablations)."""
    a, b = stepped.flatten(1), inverted.flatten(1)
    if metric == "cosine":
        return 1 - cosine_similarity(a, b, dim=1)
    if metric == "l1":
        return (a - b).abs().mean(1)
    if metric == "l2":
        return (a - b).square().mean(1)
    raise ValueError(f"metric: {metric!r} is none of cosine, l1, l2")


def masked_mean(values: PerImage, mask: Bool[Tensor, " B"], total: int) -> Float[Tensor, ""]:
    """Σ of `values` where `mask` holds, over `total`: one part's share of the mean over the global batch.

    0 when `total` is 0 (no image of the global batch has the term).
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
    """(z̃_{t−1}, z_{t+1}^inv) as the published code pairs them, for reproduction only.

    z̃_{t−1} is the mean of the posterior q(z_{t−1} | z_t, x̂0). z_{t+1}^inv treats the clean latents as if
    they were at level t, clips their predicted x̂0 to [−1, 1] and inverts them one step up, to ᾱ = 0 from the
    last level: two different levels, off any trajectory. t is at least 1; `labels` are those of the
    inversion's own pass. Use the trajectory target for anything else.
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
    """1 − the mean of σ(z̃_i, z_j^inv) over all images j of the batch, as the published code averages it.

    Of the B pairs of an image B − 1 pull it towards others: for reproduction only, and of a whole batch.
    """
    return 1 - _similarities(stepped, inverted).mean(1)


def representativeness_loss(predicted: Latents, memory: Float[Tensor, "M C H W"]) -> PerImage:
    """1 − min over real latents z of the same class of σ(x̂0, z) (Gu et al. 2024, eq. 5)."""
    return 1 - _similarities(predicted, memory).amin(1)


def diversity_loss(predicted: Latents, memory: Float[Tensor, "M C H W"]) -> PerImage:
    """max over earlier predictions ẑ of the same class of σ(x̂0, ẑ) (Gu et al. 2024, eq. 6)."""
    return _similarities(predicted, memory).amax(1)


def _similarities(a: Tensor, b: Tensor) -> Float[Tensor, "B M"]:
    return cosine_similarity(a.flatten(1)[:, None], b.flatten(1)[None], dim=2)
