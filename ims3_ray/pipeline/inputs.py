"""What shows to be wrong without torch, Ray or a look at images: places, names, models, the storage.

These checks take a second, so they come first. Nothing is written before all others have passed.
"""

import os
from pathlib import Path

from ims3_ray.config.evaluation import NO_PROTOCOL, scored_split
from ims3_ray.config.settings import WEIGHTS, Config, Evaluating
from ims3_ray.data import digits
from ims3_ray.data.folders import check_exists
from ims3_ray.data.named import below, is_named
from ims3_ray.data.sources import is_tensors
from ims3_ray.errors import InputError
from ims3_ray.models.files import is_hub_id, resolve_model
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import open_directory, open_storage
from ims3_ray.storage.hub import hub_name

from .validate_splits import refuse_nested, refuse_storage_within

BUNDLED = "package://"  # no folder until it is written
TIMM = "timm:"


def check_run(config: Config) -> None:
    """Raise InputError, before anything is imported or started for it, if a run can't have these inputs."""
    check_inputs(config)
    check_storage(config)
    tracking_uri(open_directory(config.storage))
    open_storage(config.storage)


def check_inputs(config: Config | Evaluating) -> None:
    """Raise InputError for images or weights that are not there. What only the network knows is not asked."""
    for split, place in image_places(config).items():
        _check_images(place, f"data.{split}")
    for section, field in WEIGHTS:
        spec = getattr(getattr(config, section, None), field, None)
        if spec is not None and not spec.startswith(TIMM) and not is_hub_id(spec):
            try:
                resolve_model(spec)
            except InputError as error:
                raise InputError(f"{section}.{field}: {error}") from error


def _check_images(place: str, name: str) -> None:
    if place.startswith(BUNDLED):
        digits.split_of(place)
    elif not is_named(place) and not hub_name(place):
        directory = open_directory(place.partition("?")[0] if is_tensors(place) else place)
        check_exists(directory, directory.uri, name)


def check_storage(config: Config, nodes: int = 1) -> None:
    """Raise InputError for a relative storage in a temporary working directory, or on several nodes."""
    is_relative = "://" not in config.storage and not Path(config.storage).expanduser().is_absolute()
    if is_relative and (_inside_job() or nodes > 1):
        raise InputError(
            f"storage: {config.storage!r} is relative, and the working directory of a job or a node is its "
            "own; name a path or URI that every node reaches, such as storage=/mnt/shared/runs or "
            "storage=s3://bucket/runs"
        )


def _inside_job() -> bool:
    """Returns whether `ray job submit` started this driver, in a temporary working directory."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def image_places(config: Config | Evaluating) -> dict[str, str]:
    """Returns where the training images and those that the protocol scores on lie, by split.

    Raises InputError if a place is not given, or if one lies within another or holds the storage.
    """
    data = config.data
    if data.train is None:
        has_recipe = isinstance(config, Config)
        why = f"recipe {config.recipe} brings no images" if has_recipe else "no training images are named"
        raise InputError(
            f"data.train: {why}; give the folder that holds one folder of training images per class, "
            "such as data.train=/data/my-images/train, or a Hugging Face dataset on disk"
        )
    places = {"train": data.train}
    if config.evaluate.protocol != NO_PROTOCOL:
        split = scored_split(config.evaluate.protocol)
        if (scored := _scored_place(data.train, config, split)) is not None:
            if data.classes is None and not any(map(_is_no_folder, (data.train, scored))):
                refuse_nested(data.train, scored, f"data.{split}")
            places[split] = scored
    for split, place in places.items():
        if not _is_no_folder(place):
            refuse_storage_within(config.storage, place, data.classes, f"data.{split}")
    return {split: below(place, data.root) for split, place in places.items()}


def _scored_place(train: str, config: Config | Evaluating, split: str) -> str | None:
    """Returns where the scored images lie; None if they are a part of the training images."""
    data = config.data
    if (place := getattr(data, split)) is not None:
        return place
    if split == "validation" and data.validation_split:
        return None
    if is_named(train):  # whose library tells the splits apart
        return train
    given = "a folder, data.validation_split=0.1" if split == "validation" else "a folder"
    raise InputError(
        f"data.{split}: protocol {config.evaluate.protocol} scores on it; "
        f"give {given}, or evaluate.protocol=none"
    )


def _is_no_folder(place: str) -> bool:
    """Returns whether `place` is no folder until it is unpacked."""
    return place.startswith(BUNDLED) or is_named(place)
