"""Ten steps of the protocol `soft` by RDED's published code; prints the golden values of test_soft.py.

    git clone https://github.com/LINs-lab/RDED && git -C RDED checkout 3f6453d8
    PYTHONPATH=.:tests/support:RDED python tests/support/published_soft.py

Runs its `validation.main.train` on the CPU, with torchvision's ResNet-18 in the initial weights of ours, on
the views and mixed batches that `soft` draws: its own draws come from other generators. In float64, images
too, since AdamW's first steps follow the signs of gradients.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace

import torch
import torchvision
from torch import Tensor, nn

from ims3_ray.evaluation import augment, train
from ims3_ray.evaluation.augment import cutmix
from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.evaluation.schedule import batch_rows
from ims3_ray.evaluation.train import budget_for, generator_for

CLASSES, IPC, STEPS, SEED = 5, 10, 10, 0
PROTOCOL = get_protocol("soft").model_copy(update={"image_size": 33})  # at 224 it takes minutes
BUDGET = budget_for(PROTOCOL, CLASSES * IPC, CLASSES)


def images() -> tuple[Tensor, Tensor]:
    """Waves of a colour and direction by class, (50, 3, 33, 33) uint8, and their labels."""
    labels = torch.arange(CLASSES).repeat_interleave(IPC)
    k, side = torch.arange(len(labels)).view(-1, 1, 1, 1), torch.arange(PROTOCOL.image_size) / 8
    colour = torch.arange(3).view(3, 1, 1)
    angle = labels.view(-1, 1, 1, 1)
    waves = torch.sin(side.view(-1, 1) * angle.cos() + side * angle.sin() + colour * angle / 3 + k)
    return (127.5 + 127.5 * waves).to(torch.uint8), labels


def teacher() -> nn.Module:
    """A linear map of 4 × 4 means, with logits of about ±20, which a temperature of 20 makes about ±1."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, CLASSES))
    with torch.no_grad():
        network[2].weight.copy_(10 * torch.sin(torch.arange(48 * CLASSES).double()).view(CLASSES, 48))
        network[2].bias.zero_()
    return network.requires_grad_(False)


@contextmanager
def float64() -> Iterator[None]:
    """Weights, draws and training views in float64: float32's last bits differ between kinds of CPU."""
    original, default = train.augment, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    augment._constant.cache_clear()
    train.augment = lambda images, *words: augment.view(images.double() / 255, *words)
    try:
        yield
    finally:
        train.augment = original
        torch.set_default_dtype(default)
        augment._constant.cache_clear()


def batches() -> list[tuple[Tensor, Tensor]]:
    """The mixed batches of `STEPS` steps of ours."""
    pixels, labels = images()
    order, views = generator_for(SEED, "batches"), generator_for(SEED, "augmentations")
    rows = list(islice(batch_rows(BUDGET, len(labels), order), STEPS))
    return [
        (cutmix(train.augment(pixels[r], PROTOCOL, views), labels[r], PROTOCOL.cutmix, views)[0], labels[r])
        for r in rows
    ]


def main() -> None:
    from validation import main as published  # RDED's

    Tensor.cuda = lambda self: self
    losses = []

    class Recorded(published.AverageMeter):
        def update(self, val: float, n: int = 1) -> None:
            super().update(val, n)
            losses.append(val)

    published.AverageMeter = Recorded
    weights = PROTOCOL.build(CLASSES, generator_for(SEED, "weights")).state_dict()
    student = torchvision.models.resnet18(num_classes=CLASSES)
    student.load_state_dict({name.removeprefix("body."): value for name, value in weights.items()})
    groups = published.get_parameters(student)
    decay = {"lr": BUDGET.learning_rate, "weight_decay": BUDGET.weight_decay}
    optimiser = torch.optim.AdamW(groups, betas=[0.9, 0.999], **decay)
    epochs = BUDGET.units
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1.0 + math.cos(math.pi * step / epochs / 2))
    )
    args = SimpleNamespace(optimizer=optimiser, temperature=20, re_accum_steps=1, mix_type="none")
    mixed = batches()
    for step, batch in enumerate(mixed):
        published.train(step, [batch], teacher(), student, args)
        schedule.step()  # an epoch is one batch
    print("LOSSES =", [float(f"{loss:.7g}") for loss in losses[::3]])
    print("LOGITS =", [float(f"{x:.7g}") for x in student.eval()(mixed[0][0][:1])[0].tolist()])


if __name__ == "__main__":
    with float64():
        main()
