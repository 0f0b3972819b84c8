"""A labelled image set, checked up front, from class folders or rows on any filesystem."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ims3_ray.display import escape_unprintable, first_few
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import permutation
from ims3_ray.storage.artifacts import Directory, fingerprint, open_directory
from ims3_ray.storage.hub import fetch_set, hub_name

from . import digits
from .folders import inspect, list_classes
from .named import is_named, unpack_named
from .sources import Rows, find_set, is_tensors
from .transforms import decode
from .unpacking import Names, numbering, unpack

# images decoded in full before any work starts, chosen by seed: also where an older look is trusted
SAMPLED_UP_FRONT = 64


@dataclass(frozen=True)
class Packed:
    """Parquet files of a directory that hold a set's images, encoded, in `column`, in the set's order."""

    files: tuple[str, ...]
    column: str = "image"


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set: `classes` sorted by name, one row an image, sorted by class and path."""

    directory: Directory
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the directory
    labels: np.ndarray  # (N,) int64, index into classes
    ids: tuple[str, ...]  # content hash
    bad: dict[str, str] = field(default_factory=dict)  # path → why it was skipped
    unpacked_from: str | None = None  # the place of the rows, where the directory was unpacked from such
    empty: tuple[str, ...] = ()  # folders beside the classes' that hold no file
    numbering: tuple[str, ...] | None = None  # the classes that integers count in those rows
    packed: Packed | None = None  # read instead of the images' own files

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def place(self) -> str:
        """What a person gave: where the images lie, or the rows that hold them."""
        return self.unpacked_from or self.directory.uri

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([self.classes, list(zip(self.paths, self.ids, strict=True))])

    def counts(self) -> np.ndarray:
        """Images per class (C,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def subset(self, per_class: int | Sequence[int] | None, *key: int | str) -> np.ndarray:
        """Rows, in the set's order, of a random subset of each class for `key`; all where None.

        `per_class` images of every class, or as many as it says for each.
        """
        if per_class is None:
            return np.arange(len(self))
        counts = [per_class] * len(self.classes) if isinstance(per_class, int) else per_class
        subset = []
        for label, (name, count) in enumerate(zip(self.classes, counts, strict=True)):
            rows = np.flatnonzero(self.labels == label)
            subset.append(rows[permutation(len(rows), *key, name)[:count]])
        return np.sort(np.concatenate(subset))

    def rows(self, kept: np.ndarray) -> "ImageSet":
        """The set of these rows alone."""
        paths, ids = (tuple(column[row] for row in kept) for column in (self.paths, self.ids))
        return replace(self, paths=paths, ids=ids, labels=self.labels[kept], packed=None)

    def split(self, share: float) -> tuple["ImageSet", "ImageSet"]:
        """(kept, held out): at least one image of every class is held out, the same for every seed of a run.

        By content, so that copies of an image stay on one side. InputError where a class has nothing left.
        """
        order = np.array(
            [int(hashlib.blake2b(f"split:{i}".encode(), digest_size=8).hexdigest(), 16) for i in self.ids]
        )
        held = np.zeros(len(self), dtype=bool)
        for label, name in enumerate(self.classes):
            own = np.flatnonzero(self.labels == label)
            ranks = np.unique(order[own])
            count = max(1, round(share * len(ranks)))
            if count >= len(ranks):
                raise InputError(
                    f"data.validation_split: {share:g} leaves class {name!r} none of its {len(ranks)} images "
                    "to train on; lower it or add images"
                )
            held[own] = order[own] < ranks[count]
        return self.rows(np.flatnonzero(~held)), self.rows(np.flatnonzero(held))


def open_images(
    location: str,
    storage: Directory,
    *,
    name: str,
    seed: int,
    max_bad_fraction: float,
    classes: Sequence[str] | None = None,
    numbered: Sequence[str] | None = None,
) -> ImageSet:
    """The image set at `location`, checked: `name` is the field that messages speak of, such as data.train.

    Of rows in several splits it takes those that this field stands for, see `find_set`; integers without
    names of their own are called as `unpack` calls them. Lists the folders of `classes`
    alone, or all where None, hashes every file and decodes it, JPEGs small, and a seeded sample in full. What
    was found in a class is kept under `storage` and used again while names, sizes and times are the same.
    Raises InputError for a folder that is missing, empty, or of one class, for rows that can't be read as
    images with classes, and where more than `max_bad_fraction` of its files are no images.
    """
    directory, unpacked_from = _class_folders(location, storage, name, classes, numbered)
    listing = list_classes(directory, unpacked_from or directory.uri, name, classes)
    if len(listing) < 2:
        raise InputError(
            f"{name}: {location} holds 1 class ({', '.join(listing)}); give at least 2 class folders"
        )
    looks = inspect(directory, listing, storage)
    names = tuple(sorted(listing))
    files = [(label, path) for label, cls in enumerate(names) for path in sorted(listing[cls])]
    bad = {path: looks[path]["bad"] for _, path in files if "bad" in looks[path]}
    good = [(label, path) for label, path in files if path not in bad]
    for row in permutation(len(good), "sampled-up-front", seed)[:SAMPLED_UP_FRONT]:
        path = good[row][1]
        try:
            decode(directory.read(path))
        except ValueError as error:
            bad[path] = str(error)
    check_bad(name, location, bad, len(files), max_bad_fraction)
    good = [(label, path) for label, path in good if path not in bad]
    labels = np.array([label for label, _ in good], dtype=np.int64)
    _refuse_empty(name, location, names, labels)
    ids = tuple(looks[path]["id"] for _, path in good)
    paths = tuple(path for _, path in good)
    empty = () if classes or unpacked_from else _others(directory, names)
    counted = numbering(directory) if unpacked_from else None
    return ImageSet(directory, names, paths, labels, ids, bad, unpacked_from, empty, counted)


def _refuse_empty(name: str, location: str, names: Sequence[str], labels: np.ndarray) -> None:
    for cls, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
        if count == 0:
            folder = f"class folder {cls!r} of {location}"
            raise InputError(f"{name}: {folder} holds no readable image; fill or remove it")


def _others(directory: Directory, names: Sequence[str]) -> tuple[str, ...]:
    """Visible folders right below that are not among `names`."""
    return tuple(name for name in directory.folders() if not name.startswith(".") and name not in names)


def _class_folders(
    location: str, storage: Directory, name: str, classes: Names, numbered: Names
) -> tuple[Directory, str | None]:
    """Those at `location`, or unpacked from what is there; and then from where."""
    if hub_name(location):
        return _class_folders(fetch_set(location), storage, name, classes, numbered)[0], location
    if is_named(location):
        return unpack_named(location, storage, name, classes), location
    if is_tensors(location):
        from .torch_files import unpack_tensors  # torch, which a look at images needs not

        return unpack_tensors(location, storage, name, numbered), location
    is_bundled = location.startswith("package://")
    given = digits.materialise(location, storage) if is_bundled else open_directory(location)
    found = find_set(given, name, classes)
    if not isinstance(found, Rows):
        return found, None
    return unpack(found, storage, f"{name}: {given.uri}", classes, numbered), given.uri


def open_labelled(
    location: str,
    storage: Directory,
    *,
    name: str,
    seed: int,
    max_bad_fraction: float,
    known: Sequence[str],
    order: Sequence[str] | None = None,
) -> ImageSet:
    """Anybody's set, held against the sorted classes `known` that it shall be scored on.

    Where these are no numbers, integers without names of their own count them in the `order` of the scored
    images' own numbers, or as they are sorted. Raises InputError as `open_images` does, for a class that is
    not known, and for a known one that is missing.
    """
    numbered = None if all(cls.isdecimal() for cls in known) else order or known
    images = open_images(
        location, storage, name=name, seed=seed, max_bad_fraction=max_bad_fraction, numbered=numbered
    )
    unknown, missing = sorted(set(images.classes) - set(known)), sorted(set(known) - set(images.classes))
    if unknown:
        raise InputError(
            f"{name}: {location} has classes that the scored images lack: {first_few(unknown)}; "
            f"known: {first_few(known)}; rename or remove them"
        )
    if missing:
        raise InputError(
            f"{name}: {location} has no image of {len(missing)} classes that the scored images have: "
            f"{first_few(missing)}; add them, or score on fewer classes with data.classes"
        )
    return images


def check_bad(name: str, location: str, bad: Mapping[str, str], total: int, max_bad_fraction: float) -> None:
    """Raise InputError where more than `max_bad_fraction` of `total` files can't be read."""
    if len(bad) > max_bad_fraction * total:
        path, why = next(iter(bad.items()))
        raise InputError(
            f"{name}: {len(bad)} of {total} files in {location} are no images, more than "
            f"data.max_bad_fraction={max_bad_fraction:g} allows; first: {escape_unprintable(path)} {why}; "
            "remove them or raise the limit"
        )
