"""A labelled image set from class folders or rows on any filesystem, checked before any work starts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np
from pyarrow import fs

from ims3_ray.config.base import canonical_location
from ims3_ray.display import escape_unprintable, first_few
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import permutation
from ims3_ray.storage.artifacts import Directory, fingerprint, open_directory
from ims3_ray.storage.hub import fetch_set, hub_name

from .folders import inspect, list_classes
from .named import is_named, unpack_digits, unpack_named
from .sources import ClassNames, Rows, find_packed, find_set, is_tensors
from .transforms import DARK, decode, deep_maximum
from .unpacking import check_unpacked, unpack

TRAIN, TESTS = "train", ("test", "val", "validation", "valid")  # folders of class folders
SAMPLED_UP_FRONT = 64  # images decoded in full, chosen by seed, also if a cached look exists


@dataclass(frozen=True)
class ParquetRows:
    """Parquet files of a directory with a set's encoded images in `column`, in the set's order."""

    files: tuple[str, ...]
    column: str = "image"


@dataclass(frozen=True)
class Tiles:
    """The parts of a packed set's images: f × f of `side` pixels each. f is 1 if they are not joined."""

    factor: int
    side: int


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set, sorted by class and path. `classes` are sorted by name."""

    directory: Directory
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the directory
    labels: np.ndarray  # (N,) int64, index into classes
    ids: tuple[str, ...]  # content hash
    bad: dict[str, str] = field(default_factory=dict)  # skipped path → reason
    unpacked_from: str | None = None  # location of the rows, if the directory was unpacked from rows
    empty: tuple[str, ...] = ()  # class folders without files
    label_names: tuple[str, ...] | None = None  # classes by integer label, if the rows name them
    parquet: ParquetRows | None = None  # read instead of the images' own files
    tiles: Tiles | None = None  # of a packed set, which trains on its enlarged tiles

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def place(self) -> str:
        """The location of the images, or of the rows that hold them."""
        return self.unpacked_from or self.directory.uri

    @property
    def num_trained(self) -> int:
        """Number of images that a classifier trains on: the tiles, if the set is packed."""
        return len(self) * (self.tiles.factor**2 if self.tiles else 1)

    @cached_property
    def fingerprint(self) -> str:
        tiles = [asdict(self.tiles)] if self.tiles else []
        return fingerprint([self.classes, list(zip(self.paths, self.ids, strict=True)), *tiles])

    def counts(self) -> np.ndarray:
        """Returns images per class (C,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def skipped(self, name: str) -> list[str]:
        """Returns a line on skipped files and one on empty class folders. `name` is a field (data.train)."""
        lines: list[str] = []
        if self.bad:
            reasons = (f"{escape_unprintable(path)} {reason}" for path, reason in self.bad.items())
            total, files = len(self) + len(self.bad), first_few(reasons, most=3, show=str)
            lines.append(f"{name}: skipped {len(self.bad)} of {total} files: {files}")
        if self.empty:
            lines.append(f"{name}: skipped class folders without files: {first_few(self.empty)}")
        return lines

    def subset(self, per_class: int | Sequence[int] | None, *key: int | str) -> np.ndarray:
        """Returns rows of a random subset for `key`, ascending: `per_class` images of each class.

        `per_class` may be one number per class. None selects all images.
        """
        if per_class is None:
            return np.arange(len(self))
        counts = [per_class] * len(self.classes) if isinstance(per_class, int) else per_class
        subset = []
        for label, (name, count) in enumerate(zip(self.classes, counts, strict=True)):
            rows = np.flatnonzero(self.labels == label)
            subset.append(rows[permutation(len(rows), *key, name)[:count]])
        return np.sort(np.concatenate(subset))

    def take(self, rows: np.ndarray) -> "ImageSet":
        """Returns the set of these rows."""
        paths, ids = (tuple(column[row] for row in rows) for column in (self.paths, self.ids))
        return replace(self, paths=paths, ids=ids, labels=self.labels[rows], parquet=None)

    def split(self, share: float) -> tuple["ImageSet", "ImageSet"]:
        """Returns (training part, held-out part): at least one image per class is held out.

        The split depends on the images' content only: not on a seed, and copies of an image stay together.
        Raises InputError if a class has no image left to train on.
        """
        order = np.array(
            [int(hashlib.blake2b(f"split:{i}".encode(), digest_size=8).hexdigest(), 16) for i in self.ids]
        )
        is_held_out = np.zeros(len(self), dtype=bool)
        for label, name in enumerate(self.classes):
            own = np.flatnonzero(self.labels == label)
            ranks = np.unique(order[own])
            count = max(1, round(share * len(ranks)))
            if count >= len(ranks):
                raise InputError(
                    f"data.validation_split: {share:g} leaves class {name!r} none of its {len(ranks)} images "
                    "to train on; lower it or add images"
                )
            is_held_out[own] = order[own] < ranks[count]
        held_out = replace(self.take(np.flatnonzero(is_held_out)), bad={}, empty=())
        return self.take(np.flatnonzero(~is_held_out)), held_out


def open_images(
    location: str,
    storage: Directory,
    *,
    name: str,
    seed: int,
    max_bad_fraction: float,
    classes: ClassNames = None,
    label_names: ClassNames = None,
) -> ImageSet:
    """Returns the image set at `location` after checks. `name` is the field in errors, such as data.train.

    Only the folders of `classes` are listed if given. Every file is hashed and decoded (JPEGs at an eighth of
    their size), and a seeded sample is decoded in full. Results are cached under `storage` while names, sizes
    and times stay the same. For rows, `find_set` selects the split and `unpack` uses `label_names`.

    Raises InputError if the folder is missing or empty or holds one class, if rows can't be read, and if more
    than `max_bad_fraction` of the files are no images.
    """
    directory, unpacked_from = _class_folders(location, storage, name, classes, label_names)
    listing = list_classes(directory, unpacked_from or directory.uri, name, classes)
    if len(listing) < 2:
        raise InputError(
            f"{name}: {location} holds 1 class ({', '.join(listing)}); give at least 2 class folders"
        )
    names, num_files = tuple(sorted(listing)), sum(map(len, listing.values()))
    of_rows = check_unpacked(directory, num_files) if unpacked_from else None
    looks = inspect(directory, listing, storage)
    files = [(label, path) for label, cls in enumerate(names) for path in sorted(listing[cls])]
    bad = {path: looks[path]["bad"] for _, path in files if "bad" in looks[path]}
    good = [(label, path) for label, path in files if path not in bad]
    sample = permutation(len(good), "sampled-up-front", seed)[:SAMPLED_UP_FRONT]
    bad |= _decode_all(directory, [good[row][1] for row in sample], f"{name}: {location}")
    check_bad(name, location, bad, len(files), max_bad_fraction)
    good = [(label, path) for label, path in good if path not in bad]
    labels = np.array([label for label, _ in good], dtype=np.int64)
    for cls, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
        if count == 0:
            folder = f"class folder {cls!r} of {location}"
            raise InputError(f"{name}: {folder} holds no readable image; fill or remove it")
    ids = tuple(looks[path]["id"] for _, path in good)
    paths = tuple(path for _, path in good)
    empty = () if classes or unpacked_from else _empty_folders(directory, names)
    return ImageSet(directory, names, paths, labels, ids, bad, unpacked_from, empty, of_rows)


def _decode_all(directory: Directory, paths: Sequence[str], where: str) -> dict[str, str]:
    """Returns {path: reason} of unreadable images. Raises InputError if those of 16 bits are all dark."""
    bad, brightest = {}, 0
    for path in paths:
        data = directory.read(path)
        try:
            decode(data)
            brightest = max(brightest, deep_maximum(data))
        except ValueError as error:
            bad[path] = str(error)
    if 0 < brightest < DARK:
        raise InputError(
            f"{where} holds images of 16 bits whose values end at {brightest}; scale them to 0 … 65535"
        )
    return bad


def _empty_folders(directory: Directory, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in directory.folders() if not name.startswith(".") and name not in classes)


def _class_folders(
    location: str, storage: Directory, name: str, classes: ClassNames, label_names: ClassNames
) -> tuple[Directory, str | None]:
    """Returns the class folders at `location`, or (folders unpacked from it, location of the rows)."""
    if hub_name(location):
        return _class_folders(fetch_set(location), storage, name, classes, label_names)[0], location
    if is_named(location):
        return unpack_named(location, storage, name, classes), location
    if is_tensors(location):
        from .torch_files import unpack_tensors  # torch is slow to import

        return unpack_tensors(location, storage, name, classes, label_names), location
    is_bundled = location.startswith("package://")
    directory = unpack_digits(location, storage) if is_bundled else open_directory(location)
    if packed := find_packed(directory):
        from .packed_sets import unpack_set  # torch is slow to import

        return unpack_set(packed, storage, f"{name}: {location}", classes), location
    found = find_set(directory, name, classes)
    if not isinstance(found, Rows):
        return found, None
    return unpack(found, storage, f"{name}: {directory.uri}", classes, label_names), directory.uri


def split_locations(data: str, test: str | None) -> tuple[str, str | None]:
    """Returns the locations of training and test images in `data`, as absolute paths if local."""
    train = canonical_location(data) or data
    if test is not None or train.startswith("package://"):
        return train, canonical_location(test)
    directory = open_directory(train)
    if directory.kind == fs.FileType.File:
        return train, None
    folders = [name for name in directory.folders() if not name.startswith(".")]
    if TRAIN in folders and set(folders) <= {TRAIN, *TESTS}:
        tests = [(directory / name).uri for name in TESTS if name in folders]
        return (directory / TRAIN).uri, next(iter(tests), None)
    try:
        rows = find_set(directory, "data.test", None)
    except InputError:  # no such split
        return train, None
    is_split = isinstance(rows, Rows) and rows != find_set(directory, "data.train", None)
    return train, train if is_split else None


def open_labelled(
    location: str,
    storage: Directory,
    *,
    name: str,
    seed: int,
    max_bad_fraction: float,
    scored_classes: Sequence[str],
    label_names: ClassNames = None,
) -> ImageSet:
    """Returns an image set whose classes must equal the sorted `scored_classes`.

    Integer labels that the set does not name count `label_names`, the order in the scored images' own rows,
    or else the sorted classes. If all classes are numbers, they are the labels. Raises InputError as
    `open_images` does, for an unknown class and for a missing class.
    """
    is_numbered = all(cls.isdecimal() and cls == str(int(cls)) for cls in scored_classes)
    names = None if is_numbered else label_names or scored_classes
    images = open_images(
        location, storage, name=name, seed=seed, max_bad_fraction=max_bad_fraction, label_names=names
    )
    unknown = sorted(set(images.classes) - set(scored_classes))
    missing = sorted(set(scored_classes) - set(images.classes))
    if unknown:
        raise InputError(
            f"{name}: {location} has classes that the scored images lack: {first_few(unknown)}; "
            f"known: {first_few(scored_classes)}; rename or remove them"
        )
    if missing:
        raise InputError(
            f"{name}: {location} has no image of {len(missing)} classes that the scored images have: "
            f"{first_few(missing)}; add them, or score on fewer classes with data.classes"
        )
    return images


def check_readable(
    images: ImageSet, unreadable: Mapping[str, str], name: str, max_bad_fraction: float
) -> None:
    """Raise InputError if too many files can't be read, with those that a stage found `unreadable`."""
    bad, total = {**images.bad, **unreadable}, len(images) + len(images.bad)
    check_bad(name, images.place, bad, total, max_bad_fraction)


def check_bad(name: str, location: str, bad: Mapping[str, str], total: int, max_bad_fraction: float) -> None:
    """Raise InputError if more than `max_bad_fraction` of `total` files can't be read."""
    if len(bad) > max_bad_fraction * total:
        path, why = next(iter(bad.items()))
        raise InputError(
            f"{name}: {len(bad)} of {total} files in {location} are no images, more than "
            f"data.max_bad_fraction={max_bad_fraction:g} allows; first: {escape_unprintable(path)} {why}; "
            "remove them or raise the limit"
        )
