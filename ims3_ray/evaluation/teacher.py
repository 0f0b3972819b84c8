"""Teachers of soft protocols: their logits for a student's views, their class order, their stored labels.

A teacher with another class order teaches nonsense, and its student's accuracy looks like that of a worse
set. Its predictions on real images are therefore compared with their labels before any student trains.

Labels stored with a set belong to views: the protocol's random resized crop and mirroring, keyed by (seed,
class, place, view) and so the same for any number of workers. Patch shuffling and CutMix are drawn anew in
every training step and are left to the training (FKD: Shen & Xing 2022).
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Int, UInt16
from torch import Tensor, nn
from torch.nn import functional

from ims3_ray.data.classes import imagenet_labels
from ims3_ray.data.distilled import DistilledImage
from ims3_ray.data.transforms import decode
from ims3_ray.data.views import Views, render_view
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import generator
from ims3_ray.models.device import prepare_device, to_device
from ims3_ray.models.extractor import RGB, load_classifier, load_timm
from ims3_ray.models.timm_networks import is_timm
from ims3_ray.storage.artifacts import Directory, read_checked

from .augment import crop_boxes
from .inference import SCORING_BATCH, forward_fn, numerics_for, predict_batches
from .label_order import assignment_shares, swapped_classes
from .probes import load_probe
from .protocols import Protocol, get_protocol
from .train import TeacherFn

WEIGHTS = "teacher.safetensors"
EPOCHS = 30  # over all training images


class TrainedTeacher(NamedTuple):
    """A teacher that a run trained: its protocol and the artefact with its weights."""

    protocol: Protocol
    values: Directory


TeacherSource = str | TrainedTeacher
"""`evaluate.teacher`, or a teacher that a run trained."""


class Teacher(NamedTuple):
    """A checked teacher and its accuracy on real training images."""

    source: TeacherSource
    accuracy: float


class _InputFormat(NamedTuple):
    """A network's input: pixels per side, normalisation, channels."""

    image_size: int
    mean: RGB
    deviation: RGB
    channels: int = 3


def teacher_protocol(name: str) -> Protocol:
    """How a run trains the teacher of the soft protocol `name`: its network, on hard labels.

    AdamW as for the students, a whole cosine, crops and flips, EPOCHS.
    """
    protocol = get_protocol(name)
    update = {
        "name": f"{protocol.name}-teacher",
        "augmentations": protocol.augmentations.model_copy(update={"shuffle": 0}),
        "cutmix": 0.0,
        "temperature": None,
        "epochs": EPOCHS,
        "batch_sizes": (),
        "schedule": "cosine",
        "warmup": 0.1,
        "evaluations": 1,
    }
    return protocol.model_copy(update=update)


def teacher_name(source: TeacherSource) -> str:
    """The teacher's name in a table."""
    return source if isinstance(source, str) else source.protocol.label


def load_teacher(
    source: TeacherSource, protocol: Protocol, classes: Sequence[str], device: torch.device
) -> TeacherFn:
    """The function from images normalised by `protocol` to the teacher's logits for `classes`.

    A timm model of ImageNet's 1000 classes is reduced to `classes` if these are ImageNet ids. Raises
    InputError for a teacher with another number of classes.
    """
    if isinstance(source, TrainedTeacher):
        values = safetensors.torch.load(read_checked(source.values, WEIGHTS))
        network = load_probe(source.protocol, len(classes), values, device)
        return _teacher_fn(network, source.protocol, protocol, device)
    if is_timm(source):
        model, size, mean, deviation = load_timm(source)
        outputs = _output_indices(source, cast(int, model.num_classes), classes)
        expected = _InputFormat(size, mean, deviation)
    else:
        model, config = load_classifier(source)
        outputs = _output_indices(source, config.num_classes, classes)
        expected = _InputFormat(config.image_size, config.mean, config.deviation)
    teacher = _teacher_fn(model.to(device).eval(), expected, protocol, device)
    return teacher if outputs is None else lambda x: teacher(x)[:, outputs]


def _output_indices(spec: str, count: int, classes: Sequence[str]) -> list[int] | None:
    """The teacher's outputs for `classes`; None if it has exactly these."""
    if count == len(classes):
        return None
    if count == 1000 and is_timm(spec) and set(classes) <= set(ids := imagenet_labels()):
        return [ids[name] for name in classes]
    raise InputError(
        f"evaluate.teacher: {spec} has {count} classes, data.train has {len(classes)}; name a teacher of "
        "these classes, or leave it out and the run trains one"
    )


def _teacher_fn(
    network: nn.Module, expected: "_InputFormat | Protocol", protocol: Protocol, device: torch.device
) -> TeacherFn:
    """The network on images normalised by `protocol`, converted to the input that it expects."""
    network.requires_grad_(False)
    forward = forward_fn(network, numerics_for(device.type, 0))
    mean, deviation, own_mean, own_deviation = (
        to_device(torch.tensor(values).view(-1, 1, 1), device)
        for values in (protocol.mean, protocol.deviation, expected.mean, expected.deviation)
    )
    fields = ("image_size", "mean", "deviation", "channels")
    is_same = all(getattr(expected, name) == getattr(protocol, name) for name in fields)

    @torch.no_grad()
    def teacher(x: Tensor) -> Tensor:
        if not is_same:
            x = (x * deviation + mean).expand(-1, expected.channels, -1, -1)
            if expected.image_size != protocol.image_size:
                side = expected.image_size, expected.image_size
                x = functional.interpolate(x, size=side, mode="bilinear", antialias=True)
            x = (x - own_mean) / own_deviation
        return forward(x)

    return teacher


def check_teacher(
    predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: Sequence[str]
) -> float:
    """The teacher's accuracy on n real images.

    Raises InputError if its classes look swapped or it is little better than guessing.
    """
    shares = assignment_shares(labels, predictions, len(classes))
    if swapped := swapped_classes(shares):
        first = "; ".join(
            f"images of {classes[c]!r} are {classes[d]!r} to it ({100 * shares[c, d]:.0f} %)"
            for c, d in list(swapped.items())[:3]
        )
        raise InputError(
            f"evaluate.teacher: its class order differs from data.train's ({len(swapped)} of {len(classes)} "
            f"classes are swapped: {first}); name a teacher trained on these classes in this order"
        )
    accuracy, chance = float((predictions == labels).mean()), 1 / len(classes)
    if accuracy < chance + min(chance, (1 - chance) / 4):
        raise InputError(
            f"evaluate.teacher: it classifies {100 * accuracy:.1f} % of the real images correctly, little "
            "better than guessing; check its class order and whether it was trained"
        )
    return accuracy


class Labelling(NamedTuple):
    """How a run's images get stored soft labels; sent to tasks."""

    teacher: Teacher
    protocol: Protocol
    classes: tuple[str, ...]
    views: int  # per image
    seed: int
    device: str


def label(images: Sequence[DistilledImage], how: Labelling) -> Views:
    """Views of the images with the teacher's logits; about SCORING_BATCH views are in memory at a time."""
    protocol, device = how.protocol, prepare_device(how.device)
    teacher = load_teacher(how.teacher.source, protocol, how.classes, device)
    boxes = np.stack([view_boxes(image, how) for image in images])
    logits: list[Tensor] = []
    per_batch = max(1, SCORING_BATCH // how.views)
    for start in range(0, len(images), per_batch):
        batch = zip(images[start : start + per_batch], boxes[start : start + per_batch], strict=True)
        pixels = [
            np.asarray(render_view(decode(image.png), box, protocol.image_size)).transpose(2, 0, 1)
            for image, of_image in batch
            for box in of_image
        ]
        predicted = predict_batches(teacher, torch.from_numpy(np.stack(pixels)), protocol, device)
        logits += [values.cpu() for values in predicted]
    values = torch.cat(logits).to(torch.float16).numpy().reshape(len(images), how.views, -1)
    return Views(boxes, values, protocol.image_size, teacher_name(how.teacher.source))


def view_boxes(image: DistilledImage, how: Labelling) -> UInt16[np.ndarray, "k 5"]:
    """Left, top, width, height and mirroring of each view of an image; the protocol must crop."""
    draw = generator("soft labels", how.seed, image.label, image.place)
    views, side = how.protocol.augmentations, how.protocol.image_size
    like = torch.zeros(()).expand(how.views, 3, side, side)
    assert views.crop_scale, how.protocol.label
    boxes = crop_boxes(like, views.crop_scale, draw)
    mirrored = torch.rand(how.views, generator=draw) < views.flip
    return torch.stack([*boxes, mirrored], dim=1).numpy().astype(np.uint16)
