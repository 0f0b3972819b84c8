"""Refinement: optimise images until a network learns from them what it learns from the real ones.

| here        | meaning                                                                                  |
|-------------|------------------------------------------------------------------------------------------|
| `z`         | the optimised latents (K, C, h, w) of a class's images, or their pixels (K, 3, S, S)     |
| `decode`    | D, from `z` to images (N, 3, S, S) of 0 … 1; N is K, or K · f² of a packed set           |
| `view`      | A, a differentiable augmentation with parameters drawn from a generator                  |
| `probe`     | θ, a network with random weights or trained on real images                               |
| `Statistic` | matched tensors: gradients of θ, or the mean of its embedding                            |

Classes are independent of each other. Sources: gradient matching, Zhao, Mopuri & Bilen 2021; networks trained
on real images, Kim et al. 2022; in latent space, Cazenavette et al. 2023; feature means, Zhao & Bilen 2023.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional

Images = Float[Tensor, "n 3 s s"]
Statistic = list[Tensor]
View = Callable[[Images, Generator], Images]
Decode = Callable[[Tensor], Images]


def loss_gradients(probe: nn.Module, images: Images, label: int, *, differentiable: bool) -> Statistic:
    """Return ∇_θ of the mean cross-entropy of images of one class, one tensor per parameter.

    Biases of convolutions are excluded: before a norm their gradient is only rounding. `differentiable` keeps
    the graph to the images.
    """
    labels = torch.full((len(images),), label, device=images.device)
    loss = functional.cross_entropy(probe(images), labels)
    return list(torch.autograd.grad(loss, matched_parameters(probe), create_graph=differentiable))


def matched_parameters(probe: nn.Module) -> list[nn.Parameter]:
    """Return all parameters but the biases of convolutions, in the order of the modules."""
    return [
        parameter
        for module in probe.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not (isinstance(module, nn.Conv2d) and name == "bias")
    ]


def gradient_distance(ours: Statistic, theirs: Statistic) -> Float[Tensor, ""]:
    """Σ over tensors of 1 − cos (Zhao et al. 2021, eq. 9, each tensor's gradient as one vector)."""
    pairs = zip(ours, theirs, strict=True)
    return torch.stack(
        [1 - functional.cosine_similarity(a.flatten(), b.flatten(), dim=0, eps=1e-12) for a, b in pairs]
    ).sum()


def filter_distance(ours: Statistic, theirs: Statistic) -> Float[Tensor, ""]:
    """Σ over filters (rows of kernels and linear layers) of 1 − cos: Zhao et al. 2021, eq. 9 as published.

    Vectors (norms and biases) are excluded, as in their code.
    """
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(ours, theirs, strict=True) if a.dim() > 1]
    return torch.stack(
        [(1 - functional.cosine_similarity(a, b, dim=1, eps=1e-12)).sum() for a, b in pairs]
    ).sum()


def absolute_distance(ours: Statistic, theirs: Statistic) -> Float[Tensor, ""]:
    """Σ |a − b| over all entries (Kim et al. 2022): lengths of gradients count too."""
    return torch.stack([(a - b).abs().sum() for a, b in zip(ours, theirs, strict=True)]).sum()


def embedding_mean(probe: nn.Module, images: Images, _label: int, *, differentiable: bool) -> Statistic:
    """Return the mean over the images of the last linear layer's input, (d,): Zhao & Bilen 2023."""
    means: Statistic = []
    *_, head = (module for module in probe.modules() if isinstance(module, nn.Linear))
    hook = head.register_forward_pre_hook(lambda _module, inputs: means.append(inputs[0].mean(dim=0)))
    with torch.set_grad_enabled(differentiable):
        probe(images)
    hook.remove()
    return means


def mean_distance(ours: Statistic, theirs: Statistic) -> Float[Tensor, ""]:
    """Σ over tensors of the mean of (a − b)² (Zhao & Bilen 2023, eq. 6)."""
    return torch.stack([(a - b).square().mean() for a, b in zip(ours, theirs, strict=True)]).sum()


@dataclass(frozen=True)
class MatchingObjective:
    """A measurement of images by a network, and the distance of two measurements."""

    description: str
    measure: Callable[..., Statistic]
    distance: Callable[[Statistic, Statistic], Tensor]
    second_order: bool = False
    """Whether the statistic is a gradient, which doubles the passes through the probe."""


OBJECTIVES = {
    "gradients": MatchingObjective(
        "gradients of the loss", loss_gradients, gradient_distance, second_order=True
    ),
    "filters": MatchingObjective(
        "gradients of the loss, filter by filter", loss_gradients, filter_distance, second_order=True
    ),
    "gradients_l1": MatchingObjective(
        "gradients of the loss, by absolute differences", loss_gradients, absolute_distance, second_order=True
    ),
    "embeddings": MatchingObjective(
        "means of the embedding before the last layer", embedding_mean, mean_distance
    ),
}


class NoGradientError(ValueError):
    """The decoded images pass no gradient."""


class Match(NamedTuple):
    """One step's probe, its statistic of real images, and the generator of its views."""

    probe: nn.Module
    target: Statistic
    draws: Generator  # on the images' device


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Adam over `steps`, each with one probe and `views` views of every image."""

    objective: MatchingObjective
    decode: Decode
    view: View
    steps: int
    lr: float
    views: int
    chunk: int  # images decoded at once with their graph; see decode_in_chunks
    clamp: bool = False  # after every step to 0 … 1, for pixels: what is optimised is what is exported

    def run(
        self,
        start: Tensor,
        label: int,
        match: Callable[[int], Match],
        on_loss: Callable[[float], None] = lambda _: None,
    ) -> Tensor:
        """Return the refined `start`.

        `match(step)` is called once per step; `on_loss` receives the loss. Raises NoGradientError if the
        decoded images have no gradient.
        """
        z = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=self.lr)
        for step in range(self.steps):
            for group in optimiser.param_groups:
                group["lr"] = self.lr * decay(step, self.steps)
            loss, z.grad = self._gradient(z, label, match(step))
            if step == 0 and loss and not z.grad.any():
                raise NoGradientError("decode: the decoded images have no gradient")
            optimiser.step()
            if self.clamp:
                with torch.no_grad():
                    z.clamp_(0, 1)
            on_loss(loss)
        return z.detach()

    def _gradient(self, z: Tensor, label: int, match: Match) -> tuple[float, Tensor]:
        images, backward = decode_in_chunks(self.decode, z, self.chunk)
        views = torch.cat([self.view(images, match.draws) for _ in range(self.views)])
        ours = self.objective.measure(match.probe, views, label, differentiable=True)
        distance = self.objective.distance(ours, match.target)
        return distance.item(), backward(torch.autograd.grad(distance, images)[0])


def decay(step: int, steps: int) -> float:
    """Return the learning rate's factor at this step (from 0): a cosine from 1 to 0.1."""
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps))


def decode_in_chunks(decode: Decode, z: Tensor, chunk: int) -> tuple[Images, Callable[[Tensor], Tensor]]:
    """Return images (N, 3, S, S) and a function from their gradient to that of `z` (K, …).

    N is a multiple of K; a packed image gives several. If K exceeds `chunk`, only one chunk's activations
    are in memory at a time; chunks are decoded a second time for the gradient.
    """
    if len(z) <= chunk:
        images = decode(z)
        return images, lambda gradient: torch.autograd.grad(images, z, gradient)[0]
    with torch.no_grad():
        images = torch.cat([decode(some) for some in z.split(chunk)])

    def backward(gradient: Tensor) -> Tensor:
        gradients, each = [], len(gradient) // len(z)
        for some, image_gradient in zip(z.detach().split(chunk), gradient.split(chunk * each), strict=True):
            leaf = some.clone().requires_grad_()
            gradients.append(torch.autograd.grad(decode(leaf), leaf, image_gradient)[0])
        return torch.cat(gradients)

    return images.requires_grad_(), backward
