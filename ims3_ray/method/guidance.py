"""Training-free guidance by real images: sampling moves candidates towards anchors.

| here | meaning |
|---|---|
| m | anchors: latents of real images of the class |
| μ_j | mass of anchor j: its share of the class |
| x̂0 | predicted clean latents (ddim.py) |
| σ_t | deviation √β̃ of a sampling step, whatever variance the model predicts or the sampler uses |

After each step within an interval of timesteps, s σ_t (target − x̂0) is added to the latents. Two targets:
- Mode guidance (MGD³, Chan-Santiago et al. 2025): one anchor per image, distinct within a set.
- Transport (form of DMGD, Wang et al. 2026): the optimal plan between a set and the anchors. This follows the
  negative gradient of the transport cost, −∇ W_ε(x̂0, m) = 2/(n d) (target − x̂0), for n images of d values.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .ddim import Guidance, Latents, PredictAt, posterior_variance

Interval = tuple[int, ...]  # first and last timestep, both included
Target = Callable[[Latents], Latents]
EPSILON, ITERATIONS = 0.1, 5  # of Sinkhorn's algorithm, from DMGD; costs are means over d


def guidance_step(target: Target, *, strength: float, interval: Interval) -> Guidance:
    """Return s σ_t (target(x̂0) − x̂0), which a sampler adds after steps from timesteps of the interval."""

    def guidance(x0: Latents, t: int, abar_from: Tensor, abar_to: Tensor) -> Latents:
        if not interval[0] <= t <= interval[1]:
            return torch.zeros_like(x0)
        _, beta_tilde = posterior_variance(abar_from=abar_from, abar_to=abar_to)
        return strength * beta_tilde.sqrt() * (target(x0) - x0)

    return guidance


def transport(anchors: Float[Tensor, "S K C H W"], masses: Float[Tensor, "S K"], *, set_size: int) -> Target:
    """Target for S sets of `set_size` images: the mean of the anchors, weighted by the optimal plan's shares.

    Sets are consecutive in x̂0; rows after the last set are their own target.
    """
    sets, count = masses.shape
    points = anchors.reshape(sets, count, -1)

    def target(x0: Latents) -> Latents:
        x = x0[: sets * set_size].reshape(sets, set_size, -1)
        cost = (x[:, :, None] - points[:, None]).square().mean(dim=-1)
        shares = set_size * transport_plan(cost, masses)
        return torch.cat([(shares @ points).reshape(-1, *x0.shape[1:]), x0[sets * set_size :]])

    return target


def transport_plan(
    cost: Float[Tensor, "S n K"],
    masses: Float[Tensor, "S K"],
    *,
    epsilon: float = EPSILON,
    iterations: int = ITERATIONS,
) -> Float[Tensor, "S n K"]:
    """Return the plan of least cost plus ε times its negative entropy, from n equal masses to the anchors'.

    Sinkhorn's algorithm (Cuturi 2013) in log space. The last half step gives each image mass 1/n, so its
    shares sum to 1. Anchor masses are met as far as `iterations` go.
    """
    kernel, log_masses = -cost / epsilon, masses.log()
    log_n = math.log(cost.shape[1])
    columns = torch.zeros_like(log_masses)
    rows = -log_n - kernel.logsumexp(dim=2)
    for _ in range(iterations):
        columns = log_masses - (kernel + rows[:, :, None]).logsumexp(dim=1)
        rows = -log_n - (kernel + columns[:, None]).logsumexp(dim=2)
    return (kernel + rows[:, :, None] + columns[:, None]).exp()


def switch_predictor(interval: Interval, *, inside: PredictAt, outside: PredictAt) -> PredictAt:
    """Use `inside` for timesteps of the interval, `outside` for the others.

    For example classifier-free guidance in a limited interval (Kynkäänniemi et al. 2024).
    """

    def predict(z: Tensor, t: int, labels: Tensor) -> Tensor:
        return (inside if interval[0] <= t <= interval[1] else outside)(z, t, labels)

    return predict
