"""An evaluation classifier trained the plain way: class folders, PIL and torchvision, a DataLoader's workers.

The protocol is the same: network, optimiser, schedule, batches, augmentations in their published order, looks
at the scored images. The network has torch's own modules throughout. Nothing of `evaluation.augment` is used.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ims3_ray.evaluation.augment import COLOUR_DEVIATIONS, COLOUR_DIRECTIONS
from ims3_ray.evaluation.rules import Protocol
from ims3_ray.evaluation.train import batch_rows, plan, rate
from ims3_ray.method.rng import generator
from ims3_ray.models import classifiers

SCORED_AT_ONCE = 128


class Lighting:
    """A colour added to a whole image, normal along ImageNet's principal ones (Krizhevsky et al. 2012)."""

    def __init__(self, deviation: float):
        self.deviation = deviation

    def __call__(self, image: Tensor) -> Tensor:
        alpha = torch.randn(3) * self.deviation * torch.tensor(COLOUR_DEVIATIONS)
        return image + (torch.tensor(COLOUR_DIRECTIONS) @ alpha).view(3, 1, 1)


def training_view(protocol: Protocol) -> transforms.Compose:
    """What a PIL image goes through to be trained on, as the published scripts have it."""
    steps, size = protocol.augmentations, protocol.image_size
    chain: list[Callable] = [transforms.Resize(size), transforms.CenterCrop(size)]
    if steps.crop_scale is not None:
        chain.append(transforms.RandomResizedCrop(size, scale=steps.crop_scale))
    if steps.flip:
        chain.append(transforms.RandomHorizontalFlip(steps.flip))
    if steps.randaugment_ops:
        chain.append(transforms.RandAugment(steps.randaugment_ops, steps.randaugment_magnitude))
    if steps.jitter:
        chain.append(transforms.ColorJitter(steps.jitter, steps.jitter, steps.jitter))
    chain.append(transforms.ToTensor())
    if steps.lighting:
        chain.append(Lighting(steps.lighting))
    return transforms.Compose([*chain, transforms.Normalize(protocol.mean, protocol.deviation)])


def scored_view(protocol: Protocol) -> transforms.Compose:
    """What a PIL image goes through to be scored."""
    size, normal = protocol.image_size, transforms.Normalize(protocol.mean, protocol.deviation)
    return transforms.Compose(
        [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), normal]
    )


def stock(model: nn.Module) -> nn.Module:
    """The same network with torch's average pooling where this project has its own."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, classifiers.Halve):
                setattr(parent, name, nn.AvgPool2d(2))
    return model


def train_plainly(
    train: Path, scored: Path, protocol: Protocol, *, workers: int, seed: int, device: str
) -> float:
    """Accuracy on `scored` of the protocol's network, trained on `train`: folders of the same classes."""
    torch.manual_seed(seed)  # the workers' seeds follow from it
    trained_on = ImageFolder(train, training_view(protocol))
    looked_at = ImageFolder(scored, scored_view(protocol))
    num_classes = len(trained_on.classes)
    mix = v2.RandomApply([v2.CutMix(num_classes=num_classes)], protocol.cutmix)
    weights = generator("plain", seed)
    model = stock(protocol.build(num_classes, weights))
    model.to(device)
    budget = protocol.budget(max(1, round(len(trained_on) / num_classes)), num_classes)
    optimiser = torch.optim.SGD(
        model.parameters(),
        budget.learning_rate,
        protocol.momentum,
        weight_decay=budget.weight_decay,
        nesterov=protocol.nesterov,
    )
    steps, marks = plan(budget, len(trained_on), protocol.evaluations)
    order = [
        rows.tolist() for rows in batch_rows(budget, len(trained_on), torch.Generator().manual_seed(seed))
    ]
    batches = DataLoader(trained_on, batch_sampler=order, num_workers=workers, pin_memory=device == "cuda")
    tests = DataLoader(looked_at, SCORED_AT_ONCE, num_workers=workers, pin_memory=device == "cuda")
    accuracy = 0.0
    for step, (images, labels) in enumerate(batches, start=1):
        for group in optimiser.param_groups:
            group["lr"] = budget.learning_rate * rate(protocol, budget, step - 1, steps)
        images, labels = images.to(device), labels.to(device)
        images, targets = mix(images, labels)
        loss = functional.cross_entropy(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in marks:
            accuracy = plain_accuracy(model, tests, device)
    return accuracy


@torch.no_grad()
def plain_accuracy(model: nn.Module, batches: Iterable, device: str) -> float:
    """Share of the images that the model labels right."""
    right = [(model(images.to(device)).argmax(1) == labels.to(device)).cpu() for images, labels in batches]
    return torch.cat(right).float().mean().item()
