"""Whether images show what their labels say, by a classifier that has seen real images alone."""

from collections.abc import Mapping

import numpy as np
import ray
import torch

from ims3_ray.cluster.resources import DEFAULT_PLACEMENT, Machine
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import READ_ROWS
from ims3_ray.data.transforms import decode, resize_and_crop
from ims3_ray.evaluation.probes import load_probe, trained
from ims3_ray.evaluation.rules import Protocol
from ims3_ray.evaluation.scoring import accuracy
from ims3_ray.models.classifiers import Classifier
from ims3_ray.models.device import prepare_device
from ims3_ray.storage.rows import Index

from .classifiers import clear, pixels_of


def label_agreement(
    sets: Mapping[str, Index], train: ImageSet, rules: Protocol, seed: int, machine: Machine
) -> dict[str, float]:
    """By set, the share of its images whose label a classifier gives that was trained on `train` by `rules`.

    The sets are rows of candidates, whose encoded images a task reads, READ_ROWS at a time.
    """
    judge = ray.remote(**machine.classifier_resources(1), **DEFAULT_PLACEMENT)(_judge)
    shares = ray.get(judge.remote(dict(sets), train, rules, seed, machine.device))
    clear([train], {rules.image_size}, machine)
    return shares


def _judge(
    sets: dict[str, Index], images: ImageSet, rules: Protocol, seed: int, kind: str
) -> dict[str, float]:
    device, num_classes = prepare_device(kind), len(images.classes)
    with pixels_of(images, rules.image_size) as train:
        state = trained(train, rules, num_classes, seed, device)
    network = load_probe(rules, num_classes, state, device)
    return {name: _share(network, images, rules, device) for name, images in sets.items()}


def _share(network: Classifier, images: Index, rules: Protocol, device: torch.device) -> float:
    """Of these images whose label the network gives."""
    right = 0.0
    for places in np.split(np.arange(len(images)), range(READ_ROWS, len(images), READ_ROWS)):
        rows = images.take(places)
        x = np.stack([resize_and_crop(decode(png), rules.image_size) for png in rows.read("image")])
        pixels, labels = (torch.from_numpy(values).to(device) for values in (x, rows.keys["label"]))
        right += len(places) * accuracy(network, pixels, labels, rules)
    return right / len(images)
