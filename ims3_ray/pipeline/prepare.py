"""Everything that is checked before any heavy work: paths, images, models, classes, numbers that must fit
each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import torch

from ims3_ray.cluster.machine import ANYWHERE, Machine, inside_job, num_nodes
from ims3_ray.config.sections import Data
from ims3_ray.config.settings import Config, Evaluating
from ims3_ray.data.classes import class_map
from ims3_ray.data.distilled import check_class_names
from ims3_ray.data.images import ImageSet, open_images
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import NO_PROTOCOL, protocol, protocols
from ims3_ray.models.device import Numerics, supported
from ims3_ray.models.extractor import inspect_extractor, load_extractor
from ims3_ray.models.generator import inspect_generator
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.classifiers import check_networks
from ims3_ray.storage.artifacts import Directory, fingerprint, open_storage
from ims3_ray.storage.hashing import content_hash

from .splits import check_splits, refuse_nested

BUNDLED = "package://"  # no folder until it is written


def check_storage(config: Config) -> None:
    """InputError for a relative storage where the working directory is temporary or each node has its own."""
    is_relative = "://" not in config.storage and not Path(config.storage).expanduser().is_absolute()
    if is_relative and (inside_job() or (ray.is_initialized() and num_nodes() > 1)):
        raise InputError(
            f"storage: {config.storage!r} is relative, and the working directory of a job or a node is its own; "
            "name a path or URI that every node reaches, such as storage=/mnt/shared/runs or storage=s3://bucket/runs"
        )


def image_places(config: Config | Evaluating) -> dict[str, str]:
    """Where the training images lie, and those that the protocol scores on. InputError where that was left
    open.
    """
    data = config.data
    if data.train is None:
        why = (
            f"recipe {config.recipe} brings no images"
            if isinstance(config, Config)
            else "no training images are named"
        )
        raise InputError(
            f"data.train: {why}; give the folder that holds one folder of training images a class, "
            "such as data.train=/data/my-images/train, or a Hugging Face dataset on disk"
        )
    places = {"train": data.train}
    if config.evaluate.protocol != NO_PROTOCOL:
        split = protocol(config.evaluate.protocol).split
        scored = getattr(data, split)
        if scored is None and split == "validation" and data.validation_split:
            return places  # taken from the training images once they are listed
        if scored is None:
            given = "a folder, data.validation_split=0.1" if split == "validation" else "a folder"
            raise InputError(
                f"data.{split}: protocol {config.evaluate.protocol} scores on it; give {given}, or evaluate.protocol=none"
            )
        if data.classes is None and not data.train.startswith(BUNDLED) and not scored.startswith(BUNDLED):
            refuse_nested(data.train, scored, f"data.{split}")
        places[split] = scored
    return places


def prepare(config: Config, machine: Machine) -> Context:
    """The run's context. InputError, in one line, for whatever a person must mend first."""
    storage = open_storage(config.storage)
    images = open_splits(image_places(config), config.data, config.seed, storage)
    train = images["train"]
    check_class_names(train.classes)
    info = inspect_generator(
        config.model.path,
        vae=config.model.vae,
        heads=config.model.heads,
        frequency_shift=config.model.frequency_shift,
    )
    names = tuple(info.id2label) if info.id2label else None
    labels = class_map(train.classes, names, info.num_classes, config.data.class_map)
    _check_numbers(config, train, info.config.in_channels)
    _check_evaluation(config, len(train.classes))
    extractor = inspect_extractor(config.embed.extractor)
    models = [Path(info.path)] if config.model.vae is None else [Path(info.path), Path(info.vae_path)]
    inputs = {
        "images": train.fingerprint,
        "model": fingerprint([content_hash(path, storage) for path in models]),
        "extractor": content_hash(extractor, storage) if isinstance(extractor, Path) else extractor,
    }
    if config.evaluate.protocol != NO_PROTOCOL:
        inputs["scored"] = images[protocol(config.evaluate.protocol).split].fingerprint
    numerics, notes = _numerics(config, machine)
    notes += [f"warning: {line}" for line in check_splits(images, config.data.max_overlap_fraction)]
    return Context(config, storage, machine, images, info, labels, numerics, tuple(notes), inputs)


def prepare_all(configs: Iterable[Config], machine: Machine) -> list[Context]:
    """The contexts of runs of one recipe: what they read is opened and hashed once for those that read the
    same.
    """
    opened: dict[str, Context] = {}
    contexts = []
    for config in configs:
        sections = [config.data, config.model, config.embed]
        key = fingerprint(
            [
                *(section.model_dump(mode="json") for section in sections),
                config.seed,
                config.evaluate.protocol,
            ]
        )
        if key not in opened:
            opened[key] = prepare(config, machine)
        like = opened[key]
        _check_numbers(config, like.images["train"], like.info.config.in_channels)
        _check_evaluation(config, len(like.classes))
        contexts.append(replace(like, config=config))
    return contexts


def _numerics(config: Config, machine: Machine) -> tuple[Numerics, list[str]]:
    """The recipe's precision and compilation, as far as the device that will work can do them, and what it
    can't.
    """
    device = machine.device
    wanted = Numerics(device, config.model.precision.on(device), config.model.compile.on(device))
    if wanted == Numerics():
        return wanted, []
    if not ray.is_initialized():  # a dry run: what this machine can do stands for what a cluster can
        return supported(wanted) if device == "cpu" or torch.cuda.is_available() else (wanted, [])
    return ray.get(ray.remote(**machine.actor_resources, **ANYWHERE)(supported).remote(wanted))


def open_splits(places: Mapping[str, str], data: Data, seed: int, storage: Directory) -> dict[str, ImageSet]:
    """The sets at `places` ("train", and the split that is scored), of the same classes.

    With data.validation_split a part of the training images becomes "validation", whatever is scored.
    """
    shared = {"seed": seed, "max_bad_fraction": data.max_bad_fraction, "classes": data.classes}
    opened = {
        name: open_images(place, storage, name=f"data.{name}", split=name, **shared)
        for name, place in places.items()
    }
    for name, images in opened.items():
        if images.classes != opened["train"].classes:
            odd = sorted(set(images.classes) ^ set(opened["train"].classes))
            raise InputError(
                f"data.{name}: its classes differ from data.train's: {', '.join(map(repr, odd[:5]))}"
            )
    if data.validation_split:
        opened["train"], opened["validation"] = opened["train"].split(data.validation_split)
    return opened


def _check_numbers(config: Config, train: ImageSet, channels: int) -> None:
    counts = train.counts()
    smallest = int(counts.argmin())
    needed, why = config.ipc, f"ipc={config.ipc}"
    if config.evaluate.protocol != NO_PROTOCOL and config.evaluate.neighbours + 1 > needed:
        needed, why = config.evaluate.neighbours + 1, f"evaluate.neighbours={config.evaluate.neighbours}"
    if counts[smallest] < needed:
        raise InputError(
            f"data.train: class {train.classes[smallest]!r} has {counts[smallest]} images, {why} needs {needed}; "
            "add images or lower it"
        )
    if config.sample.guidance_channels > channels:
        raise InputError(
            f"sample.guidance_channels: {config.sample.guidance_channels} of {channels} latent channels; lower it"
        )
    tuned = int(np.minimum(counts, config.encode.images_per_class or counts.max()).sum())
    if config.finetune.epochs and tuned < config.finetune.batch_size:
        raise InputError(
            f"finetune.batch_size: {config.finetune.batch_size} is more than the {tuned} images to tune on; lower it"
        )


def _check_evaluation(config: Config, num_classes: int) -> None:
    if config.evaluate.protocol == NO_PROTOCOL:
        return
    check_networks(protocols(config.evaluate.protocol, config.evaluate.networks), num_classes)
    pool = config.pool_ipc * config.sample.subgroups
    if (config.evaluate.pool_images or 0) > pool:
        raise InputError(
            f"evaluate.pool_images: {config.evaluate.pool_images} a class are more than the pool's {pool} "
            "(images a subgroup times sample.subgroups); lower it, or sample more"
        )


def fetch_extractor(config: Config) -> None:
    """InputError where φ's weights can't be had: known before the hours of tuning that come ahead of its
    first use.
    """
    load_extractor(config.embed.extractor)
