"""What the teacher of a soft protocol answers to views of the distilled images, to be kept with the set.

A view is the protocol's random resized crop and mirroring, keyed by (seed, class, place, view): the same for
any number of workers. Its shuffled patches and CutMix, which are drawn anew in every step of a training, are
the trainer's own affair (Shen & Xing 2022, FKD: boxes and mirroring are kept beside the answers).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt16

from ims3_ray.data.distilled import DistilledImage
from ims3_ray.data.transforms import decode
from ims3_ray.data.views import Views, render_view
from ims3_ray.method.seeding import generator
from ims3_ray.models.device import prepare_device

from .augment import crop_boxes
from .rules import Protocol
from .scoring import SCORING_BATCH, answers
from .teacher import Teacher, load_teacher, name_of


class Labelling(NamedTuple):
    """How a run's images are labelled; what tasks are sent."""

    teacher: Teacher
    rules: Protocol
    classes: tuple[str, ...]
    views: int  # of every image
    seed: int
    device: str


def label(images: Sequence[DistilledImage], how: Labelling) -> Views:
    """Views of the images, and the teacher's logits for them; about SCORING_BATCH views are in memory."""
    rules, device = how.rules, prepare_device(how.device)
    answer = load_teacher(how.teacher.given, rules, how.classes, device)
    boxes = np.stack([boxes_of(image, how) for image in images])
    logits, at_once = [], max(1, SCORING_BATCH // how.views)
    for start in range(0, len(images), at_once):
        part = zip(images[start : start + at_once], boxes[start : start + at_once], strict=True)
        shown = [
            np.asarray(render_view(decode(image.png), box, rules.image_size)).transpose(2, 0, 1)
            for image, of_image in part
            for box in of_image
        ]
        logits += [given.cpu() for given in answers(answer, torch.from_numpy(np.stack(shown)), rules, device)]
    numbers = torch.cat(logits).to(torch.float16).numpy().reshape(len(images), how.views, -1)
    return Views(boxes, numbers, rules.image_size, name_of(how.teacher.given))


def boxes_of(image: DistilledImage, how: Labelling) -> UInt16[np.ndarray, "k 5"]:
    """The views of one image, by a protocol that crops, as the soft ones do."""
    draw = generator("soft labels", how.seed, image.label, image.place)
    steps, side = how.rules.augmentations, how.rules.image_size
    like = torch.zeros(()).expand(how.views, 3, side, side)
    assert steps.crop_scale, how.rules.label
    boxes = crop_boxes(like, steps.crop_scale, draw)
    mirrored = torch.rand(how.views, generator=draw) < steps.flip
    return torch.stack([*boxes, mirrored], dim=1).numpy().astype(np.uint16)
