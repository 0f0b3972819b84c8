"""Teachers of soft protocols: what they answer to what a network sees, and whether their classes are ours.

A teacher whose classes stand in another order teaches nonsense, and its student's accuracy is that of a
worse set. So its answers to real images are held against their labels before any student trains.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from ims3_ray.data.classes import imagenet_labels
from ims3_ray.errors import InputError
from ims3_ray.models.device import to_device
from ims3_ray.models.extractor import RGB, load_classifier, load_timm
from ims3_ray.models.timm_networks import is_timm
from ims3_ray.storage.artifacts import Directory

from .inference import forward_in, numerics_for
from .label_order import assignment_shares, swapped_classes
from .probes import load_probe
from .protocols import protocol
from .rules import Protocol
from .train import Answer

WEIGHTS = "teacher.safetensors"
EPOCHS = 30  # of all training images
LEAST = 2  # times what guessing has right: a teacher that knows less teaches nothing


class Trained(NamedTuple):
    """A teacher that a run has trained: how, and where its values lie."""

    rules: Protocol
    values: Directory


class Teacher(NamedTuple):
    """One whose classes are ours: where it is had from, the share of real images that it labels right."""

    given: str | Trained  # as evaluate.teacher has it
    accuracy: float


def teacher_rules(name: str) -> Protocol:
    """How a run trains the teacher of the soft protocol `name`: its own network, by hard labels.

    AdamW as its students, a whole cosine, crops and flips, EPOCHS.
    """
    rules = protocol(name)
    update = {
        "name": f"{rules.name}-teacher",
        "augmentations": rules.augmentations.model_copy(update={"shuffle": 0}),
        "cutmix": 0.0,
        "temperature": None,
        "epochs": EPOCHS,
        "batch_sizes": (),
        "schedule": "cosine",
        "warmup": 0.1,
        "evaluations": 1,
    }
    return rules.model_copy(update=update)


def name_of(given: str | Trained) -> str:
    """The teacher as a table names it."""
    return given if isinstance(given, str) else given.rules.label


def load_teacher(
    given: str | Trained, rules: Protocol, classes: Sequence[str], device: torch.device
) -> Answer:
    """What answers for `given`, evaluate.teacher or one that a run trained, to images as `rules` show them.

    Of a timm model of ImageNet's 1000 classes those of `classes` are taken, where these are ImageNet ids.
    InputError for one that tells another number of classes apart.
    """
    if isinstance(given, Trained):
        values = safetensors.torch.load(given.values.read(WEIGHTS))
        network = load_probe(given.rules, len(classes), values, device)
        return _answer(network, given.rules, rules, device)
    if is_timm(given):
        model, size, mean, deviation = load_timm(given)
        outputs = _outputs(given, cast(int, model.num_classes), classes)
        shown = _Shown(size, mean, deviation)
    else:
        model, config = load_classifier(given)
        outputs = _outputs(given, config.num_classes, classes)
        shown = _Shown(config.image_size, config.mean, config.deviation)
    answer = _answer(model.to(device).eval(), shown, rules, device)
    return answer if outputs is None else lambda x: answer(x)[:, outputs]


class _Shown(NamedTuple):
    """What a network sees: pixels a side, and what those in [0, 1] are normalised by."""

    image_size: int
    mean: RGB
    deviation: RGB
    channels: int = 3


def _outputs(spec: str, count: int, classes: Sequence[str]) -> list[int] | None:
    """The teacher's outputs for our classes; None for all of them, as they are."""
    if count == len(classes):
        return None
    if count == 1000 and is_timm(spec) and set(classes) <= set(known := imagenet_labels()):
        return [known[name] for name in classes]
    raise InputError(
        f"evaluate.teacher: {spec} tells {count} classes apart, data.train has {len(classes)}; name a "
        "teacher of these classes, or leave it out and the run trains one"
    )


def _answer(network: nn.Module, own: "_Shown | Protocol", rules: Protocol, device: torch.device) -> Answer:
    """The network's logits for images that `rules` normalised, brought to what it has seen itself."""
    network.requires_grad_(False)
    forward = forward_in(network, numerics_for(device.type, 0))
    mean, deviation, own_mean, own_deviation = (
        to_device(torch.tensor(values).view(-1, 1, 1), device)
        for values in (rules.mean, rules.deviation, own.mean, own.deviation)
    )
    is_same = all(
        getattr(own, name) == getattr(rules, name) for name in ("image_size", "mean", "deviation", "channels")
    )

    @torch.no_grad()
    def answer(x: Tensor) -> Tensor:
        if not is_same:
            x = (x * deviation + mean).expand(-1, own.channels, -1, -1)
            if own.image_size != rules.image_size:
                side = own.image_size, own.image_size
                x = functional.interpolate(x, size=side, mode="bilinear", antialias=True)
            x = (x - own_mean) / own_deviation
        return forward(x)

    return answer


def check_teacher(
    answers: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: Sequence[str]
) -> float:
    """The share of real images that the teacher labels right; InputError where its classes are not ours."""
    shares = assignment_shares(labels, answers, len(classes))
    if swapped := swapped_classes(shares):
        first = "; ".join(
            f"images of {classes[c]!r} are {classes[d]!r} to it ({100 * shares[c, d]:.0f} %)"
            for c, d in list(swapped.items())[:3]
        )
        raise InputError(
            f"evaluate.teacher: its classes stand in another order than data.train's ({len(swapped)} of "
            f"{len(classes)} are swapped: {first}); name one that was trained on these classes in this order"
        )
    right = float((answers == labels).mean())
    if right < min(LEAST / len(classes), 0.9):
        raise InputError(
            f"evaluate.teacher: it labels {100 * right:.1f} % of the real images right, which guessing "
            "nearly does; its classes may stand in another order, or it has not been trained"
        )
    return right
