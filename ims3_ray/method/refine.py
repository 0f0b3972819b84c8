"""Refinement: images are moved until a network learns from them what it learns from the real ones.

| here        | what                                                                                      |
|-------------|-------------------------------------------------------------------------------------------|
| `z`         | what is moved: the latents (K, C, h, w) of a class's images, or their pixels (K, 3, S, S) |
| `decode`    | D, from `z` to images (K, 3, S, S) of 0 … 1                                               |
| `view`      | A, a differentiable augmentation whose parameters are drawn from a generator              |
| `probe`     | θ, a network as it is drawn, or trained on real images alone                              |
| `Statistic` | what is matched, tensors: gradients of θ, means of its maps, or of its embedding           |

Classes are refined apart from each other: nothing that is matched depends on another class's images.
Sources: gradient matching, Zhao, Mopuri & Bilen 2021; networks trained on real images, Kim et al. 2022; in a
generator's latent space, Cazenavette et al. 2023; means of features, Zhao & Bilen 2023.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional

Images = Float[Tensor, "n 3 s s"]
Statistic = list[Tensor]
View = Callable[[Images, Generator], Images]
Decode = Callable[[Tensor], Images]
ACTIVATIONS = (nn.ReLU, nn.GELU)  # after which maps are measured


def loss_gradients(probe: nn.Module, images: Images, label: int, *, differentiable: bool) -> Statistic:
    """∇_θ of the mean cross-entropy of images of one class, a tensor a parameter.

    Convolutions' biases are left out: before a norm they have no gradient but rounding. `differentiable`
    keeps the graph to the images.
    """
    labels = torch.full((len(images),), label, device=images.device)
    loss = functional.cross_entropy(probe(images), labels)
    return list(torch.autograd.grad(loss, matched_parameters(probe), create_graph=differentiable))


def matched_parameters(probe: nn.Module) -> list[nn.Parameter]:
    """All but the biases of convolutions, in the order of the modules."""
    return [
        parameter
        for module in probe.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not (isinstance(module, nn.Conv2d) and name == "bias")
    ]


def gradient_distance(ours: Statistic, theirs: Statistic) -> Float[Tensor, ""]:
    """Σ over tensors of 1 − cos (Zhao et al. 2021, eq. 9, with a tensor's gradient as one vector)."""
    pairs = zip(ours, theirs, strict=True)
    return torch.stack(
        [1 - functional.cosine_similarity(a.flatten(), b.flatten(), dim=0, eps=1e-12) for a, b in pairs]
    ).sum()


def filter_distance(ours: Statistic, theirs: Statistic) -> Float[Tensor, ""]:
    """Σ over filters (rows of a kernel or a linear layer) of 1 − cos: Zhao et al. 2021, eq. 9 as published.

    Values without rows, of norms and biases, are left out, as their code does.
    """
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(ours, theirs, strict=True) if a.dim() > 1]
    return torch.stack(
        [(1 - functional.cosine_similarity(a, b, dim=1, eps=1e-12)).sum() for a, b in pairs]
    ).sum()


def map_means(probe: nn.Module, images: Images, _label: int, *, differentiable: bool) -> Statistic:
    """Mean over the images of the maps after every activation, a tensor (c, h, w) each."""
    means: Statistic = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, maps: means.append(maps.mean(dim=0)))
        for module in probe.modules()
        if isinstance(module, ACTIVATIONS)
    ]
    with torch.set_grad_enabled(differentiable):
        probe(images)
    for hook in hooks:
        hook.remove()
    return means


def embedding_mean(probe: nn.Module, images: Images, _label: int, *, differentiable: bool) -> Statistic:
    """Mean over the images of what the last linear layer is given, one tensor (d,): Zhao & Bilen 2023."""
    means: Statistic = []
    *_, head = (module for module in probe.modules() if isinstance(module, nn.Linear))
    hook = head.register_forward_pre_hook(lambda _module, given: means.append(given[0].mean(dim=0)))
    with torch.set_grad_enabled(differentiable):
        probe(images)
    hook.remove()
    return means


def mean_distance(ours: Statistic, theirs: Statistic) -> Float[Tensor, ""]:
    """Σ over tensors of the mean of (a − b)² (Zhao & Bilen 2023, eq. 6, there of the embedding alone)."""
    return torch.stack([(a - b).square().mean() for a, b in zip(ours, theirs, strict=True)]).sum()


@dataclass(frozen=True)
class Objective:
    """What is measured of images, and how far two measurements are apart."""

    words: str
    measure: Callable[..., Statistic]
    distance: Callable[[Statistic, Statistic], Tensor]
    second_order: bool = False
    """Whether what is measured is a gradient itself, so that a step goes through the probe twice as often."""


OBJECTIVES = {
    "gradients": Objective("gradients of the loss", loss_gradients, gradient_distance, second_order=True),
    "filters": Objective(
        "gradients of the loss, filter by filter", loss_gradients, filter_distance, second_order=True
    ),
    "features": Objective("means of the maps", map_means, mean_distance),
    "embeddings": Objective("means of the embedding before the last layer", embedding_mean, mean_distance),
}


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How images are moved: Adam over `steps`, each with one probe and `views` views of every image."""

    objective: Objective
    decode: Decode
    view: View
    steps: int
    lr: float
    views: int
    stay: float  # weight of the mean squared distance to the start
    part: int  # images decoded at once with their graph: more are decoded part by part, and then again

    def run(
        self,
        start: Tensor,
        label: int,
        probes: Sequence[nn.Module],
        target: Callable[[int], Statistic],
        draws: Callable[[int], Generator],
        hear: Callable[[float], None] = lambda _: None,
        siamese: Callable[[int], Generator] | None = None,
    ) -> Tensor:
        """What `start` becomes. Each step takes one of the probes, whose statistic of the class's real images
        `target(place)` gives; `draws(step)` is a generator on the images' device, and `hear` takes the loss.

        Views are the step's own, or with `siamese(place)` those that the target was measured in (Zhao & Bilen
        2021, eq. 3). ValueError where no gradient comes back from the images.
        """
        z = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=self.lr)
        for step in range(self.steps):
            for group in optimiser.param_groups:
                group["lr"] = self.lr * decay(step, self.steps)
            generator = draws(step)
            place = int(torch.randint(len(probes), (), generator=generator, device=generator.device))
            seen = siamese(place) if siamese else generator
            loss, z.grad = self._gradient(z, start, label, probes[place], target(place), seen)
            if step == 0 and not z.grad.abs().sum() > 0:
                raise ValueError("no gradient comes back from the decoded images")
            optimiser.step()
            hear(loss)
        return z.detach()

    def _gradient(
        self,
        z: Tensor,
        start: Tensor,
        label: int,
        probe: nn.Module,
        target: Statistic,
        generator: Generator,
    ) -> tuple[float, Tensor]:
        images, pull_back = decode_in_chunks(self.decode, z, self.part)
        shown = torch.cat([self.view(images, generator) for _ in range(self.views)])
        ours = self.objective.measure(probe, shown, label, differentiable=True)
        distance = self.objective.distance(ours, target)
        gradient = pull_back(torch.autograd.grad(distance, images)[0])
        if self.stay:
            gradient = gradient + self.stay * 2 * (z.detach() - start) / z.numel()
        return distance.item(), gradient


def decay(step: int, steps: int) -> float:
    """Share of the learning rate at this step, from 0: a cosine down to a tenth."""
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps))


def decode_in_chunks(decode: Decode, z: Tensor, part: int) -> tuple[Images, Callable[[Tensor], Tensor]]:
    """Images (K, 3, S, S), to differentiate by, and what takes a gradient by them to one by `z`.

    Where K is more than `part`, activations of one part at a time are held, and decoded once more for it.
    """
    if len(z) <= part:
        images = decode(z)
        return images, lambda gradient: torch.autograd.grad(images, z, gradient)[0]
    with torch.no_grad():
        images = torch.cat([decode(some) for some in z.split(part)])

    def pull_back(gradient: Tensor) -> Tensor:
        gradients = []
        for some, of_some in zip(z.detach().split(part), gradient.split(part), strict=True):
            leaf = some.clone().requires_grad_()
            gradients.append(torch.autograd.grad(decode(leaf), leaf, of_some)[0])
        return torch.cat(gradients)

    return images.requires_grad_(), pull_back
