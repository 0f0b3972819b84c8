"""Cheap checks of inputs, without torch, Ray or decoding: locations, names, models, storage, overlaps.

They run first and take about a second. Nothing is written before all checks have passed.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ims3_ray.config.evaluation import NO_PROTOCOL, scored_split
from ims3_ray.config.settings import WEIGHTS, Config, Evaluating
from ims3_ray.data.folders import check_exists
from ims3_ray.data.images import ImageSet
from ims3_ray.data.named import digit_split, is_named, with_root
from ims3_ray.data.sources import is_rows, is_tensors
from ims3_ray.errors import InputError
from ims3_ray.evaluation.audit import AuditedImages, check_overlap, imagenet_split_warnings
from ims3_ray.models.files import is_hub_id, resolve_model
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import Directory, open_directory, open_storage
from ims3_ray.storage.hub import hub_name

BUNDLED = "package://"
SCHEMES = ("timm:", "untrained:")  # of extractors without files


def check_run(config: Config) -> None:
    """Raise InputError if the run's inputs or its storage cannot be used."""
    check_inputs(config)
    check_storage(config)
    tracking_uri(open_directory(config.storage))
    open_storage(config.storage)


def check_inputs(config: Config | Evaluating) -> None:
    """Raise InputError for missing images or weights. Makes no network requests."""
    for split, location in image_places(config).items():
        _check_images(location, f"data.{split}")
    for section, field in used_weights(config):
        spec = getattr(getattr(config, section, None), field, None)
        if spec is not None and not spec.startswith(SCHEMES) and not is_hub_id(spec):
            try:
                resolve_model(spec)
            except InputError as error:
                raise InputError(f"{section}.{field}: {error}") from error


def used_weights(config: Config | Evaluating) -> list[tuple[str, str]]:
    """(section, field) of the weights that a run reads: without a generator, not those of `model`."""
    is_real = isinstance(config, Config) and config.source == "real"
    return [(section, field) for section, field in WEIGHTS if not is_real or section != "model"]


def _check_images(location: str, name: str) -> None:
    if location.startswith(BUNDLED):
        digit_split(location)
    elif not is_named(location) and not hub_name(location):
        directory = open_directory(location.partition("?")[0] if is_tensors(location) else location)
        check_exists(directory, directory.uri, name)


def check_storage(config: Config, nodes: int = 1) -> None:
    """Raise InputError for a relative storage in a Ray job's working directory, or on several nodes."""
    is_relative = "://" not in config.storage and not Path(config.storage).expanduser().is_absolute()
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # started by `ray job submit`, in a temporary folder
    if is_relative and (is_job or nodes > 1):
        raise InputError(
            f"storage: {config.storage!r} is relative, but jobs and nodes have their own working folders; "
            "use a path or URI that every node can reach, such as storage=/mnt/shared/runs or "
            "storage=s3://bucket/runs"
        )


def image_places(config: Config | Evaluating) -> dict[str, str]:
    """Locations of the training images and of the images that the protocol scores, by split.

    Raises InputError if a location is missing, if one lies within another, or if one contains the storage.
    """
    data = config.data
    if data.train is None:
        raise InputError(
            "data.train: is not set; set the folder that holds one folder of training images per class, "
            "such as data.train=/data/my-images/train, or a Hugging Face dataset on disk"
        )
    locations = {"train": data.train}
    if config.evaluate.protocol != NO_PROTOCOL:
        split = scored_split(config.evaluate.protocol)
        if (scored := _scored_location(data.train, config, split)) is not None:
            if data.classes is None and not any(map(_needs_unpacking, (data.train, scored))):
                check_not_nested(data.train, scored, f"data.{split}")
            locations[split] = scored
    for split, location in locations.items():
        check_storage_outside(config.storage, location, data.classes, f"data.{split}")
    return {split: with_root(location, data.root) for split, location in locations.items()}


def _scored_location(train: str, config: Config | Evaluating, split: str) -> str | None:
    """Location of the scored images; None if they are held out of the training images."""
    data = config.data
    if (location := getattr(data, split)) is not None:
        return location
    if split == "validation" and data.validation_split:
        return None
    if is_named(train):  # the data set's library separates the splits
        return train
    remedy = "set a folder, data.validation_split=0.1" if split == "validation" else "set a folder"
    raise InputError(
        f"data.{split}: protocol {config.evaluate.protocol} scores on this split; "
        f"{remedy}, or evaluate.protocol=none"
    )


def _needs_unpacking(location: str) -> bool:
    """Whether `location` is not a folder yet."""
    return location.startswith(BUNDLED) or is_named(location)


def check_not_nested(train: str, scored: str, name: str) -> None:
    """Raise InputError if `scored`, the location of `name`, contains the training folder or lies within it.

    Tables are exempt: a folder may hold the tables of several splits. `check_splits` finds equal splits.
    """
    directories = open_directory(train), open_directory(scored)
    a, b = map(_canonical, directories)
    is_nested = f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/")
    if is_nested and a != b and not any(map(is_rows, directories)):
        raise InputError(
            f"{name}: {scored} and data.train {train} are nested; "
            "use separate folders, or name the class folders with data.classes"
        )


def check_storage_outside(storage: str, location: str, classes: Sequence[str] | None, name: str) -> None:
    """Raise InputError if the storage lies in the image folder `location` of `name`.

    Its files would count as images. If `classes` are named, the storage may lie beside their folders.
    """
    if _needs_unpacking(location):
        return
    ours, theirs = (f"{_canonical(open_directory(each))}/" for each in (storage, location))
    if ours.startswith(theirs) and (
        not classes or ours == theirs or ours[len(theirs) :].split("/")[0] in classes
    ):
        raise InputError(f"storage: {storage} lies within {name} {location}; choose another storage=DIR")


def check_splits(images: Mapping[str, ImageSet], max_overlap: float) -> list[str]:
    """Warnings about the scored images; `images` has "train" and the scored split.

    Raises InputError if both are the same folder, or if more than `max_overlap` of the scored files are
    training files, byte for byte.
    """
    train = to_audited("data.train", images["train"])
    locations = {f"data.{split}": image_set.place for split, image_set in images.items()}
    warnings: list[str] = []
    for split in sorted(images.keys() - {"train"}):
        scored = to_audited(f"data.{split}", images[split])
        is_same = _canonical(images[split].directory) == _canonical(images["train"].directory)
        # a held-out part has no path in common
        if is_same and not set(scored.paths).isdisjoint(train.paths):
            raise InputError(
                f"{scored.name}: {locations[scored.name]} is the training folder, data.train; "
                "use images that are not trained on"
            )
        warnings += check_overlap(train, scored, limit=max_overlap, places=locations)
        if split == "test":  # a validation split is meant to be a part of the training images
            warnings += imagenet_split_warnings(scored.name, scored.paths, is_training=False)
            warnings += imagenet_split_warnings(train.name, train.paths, is_training=True)
    return warnings


def to_audited(name: str, images: ImageSet) -> AuditedImages:
    """Paths, labels and file hashes of a set, for an audit."""
    return AuditedImages(name, images.paths, images.labels, images.ids)


def _canonical(directory: Directory) -> str:
    """The same text for every spelling of a folder."""
    return str(Path(directory.path).resolve()) if directory.is_local else directory.uri
