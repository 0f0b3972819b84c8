"""Anybody's labelled image set, held against the classes that it shall be scored on."""

from collections.abc import Sequence

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory
from ims3_ray.text import some

from .images import ImageSet, open_images


def open_labelled(
    location: str, storage: Directory, *, name: str, seed: int, max_bad_fraction: float, known: Sequence[str]
) -> ImageSet:
    """The set at a path or URI, checked as `open_images` checks; `name` is what messages call it.

    `known` are the classes that it shall be scored on, sorted. Where these are no numbers, integers without
    names of their own count them. Raises InputError as `open_images` does, for a class that is not known, and
    for a known one that is missing.
    """
    numbered = None if all(cls.isdecimal() for cls in known) else known
    images = open_images(
        location, storage, name=name, seed=seed, max_bad_fraction=max_bad_fraction, numbered=numbered
    )
    unknown, missing = sorted(set(images.classes) - set(known)), sorted(set(known) - set(images.classes))
    if unknown:
        raise InputError(
            f"{name}: {location} has classes that the scored images lack: {some(unknown)}; known: {some(list(known))}; "
            "rename or remove them"
        )
    if missing:
        raise InputError(
            f"{name}: {location} has no image of {len(missing)} classes that the scored images have: {some(missing)}; "
            "add them, or score on fewer classes with data.classes"
        )
    return images
