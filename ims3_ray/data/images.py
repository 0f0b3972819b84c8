"""Class folders of images: listed, checked up front, scaled.

A data set is a folder with one folder a class and its images anywhere below, on any filesystem; what lies as
rows (sources.py) is unpacked into such a folder first. Everything in a class folder counts as an image,
whatever its name ends in; what can't be decoded is listed by name. Hidden files and folders (leading dot) are
not part of the set. Symbolic links are followed (listing.py). Where classes are named, no other folder is
looked into: ten of ImageNet's cost a hundredth of a look at its whole tree.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image
from pyarrow import fs

from ims3_ray import progress
from ims3_ray.errors import InputError
from ims3_ray.method.keys import permutation
from ims3_ray.storage.artifacts import Directory, fingerprint, open_directory
from ims3_ray.text import named, some

from . import digits
from .pixels import decode, without_far_ends
from .sources import Rows, find_set
from .unpacking import unpack

# images decoded in full before any work starts, chosen by seed: also where an older look is trusted
SAMPLED_UP_FRONT = 64
MAX_BYTES = 2**29  # of a file: no image of MAX_PIXELS has more
LOOK = 2  # raised where other files count as images than before: what was found in a class is looked at again
READERS = 16  # threads; reading is waiting
Listing = dict[str, dict[str, fs.FileInfo | str]]  # class → path → what is there, or why it is no file


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

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def place(self) -> str:
        """What a person gave: where the images lie, or the rows that hold them."""
        return self.unpacked_from or self.directory.uri

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.classes, list(zip(self.paths, self.ids, strict=True))])

    def counts(self) -> np.ndarray:
        """Images per class (C,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def subset(self, per_class: int | Sequence[int] | None, *key: int | str) -> np.ndarray:
        """Rows of a random subset of `per_class` images a class, or as many as it says for each class, for
        `key`.

        In the set's order; all where None.
        """
        if per_class is None:
            return np.arange(len(self))
        chosen = []
        for label in range(len(self.classes)):
            rows, count = (
                np.flatnonzero(self.labels == label),
                per_class if isinstance(per_class, int) else per_class[label],
            )
            chosen.append(rows[permutation(len(rows), *key, self.classes[label])[:count]])
        return np.sort(np.concatenate(chosen))

    def rows(self, kept: np.ndarray) -> "ImageSet":
        """The set of these rows alone."""
        paths, ids = (tuple(column[row] for row in kept) for column in (self.paths, self.ids))
        return replace(self, paths=paths, ids=ids, labels=self.labels[kept])

    def split(self, share: float) -> tuple["ImageSet", "ImageSet"]:
        """(kept, held out): at least one image of every class is held out, the same ones for every seed of a
        run.

        Chosen by content, so that copies of an image stay on one side. InputError where a class has nothing
        left.
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
                    f"data.validation_split: {share:g} leaves class {name!r} none of its {len(ranks)} images to train on; "
                    "lower it or add images"
                )
            held[own] = order[own] < ranks[count]
        return self.rows(np.flatnonzero(~held)), self.rows(np.flatnonzero(held))


def square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square scaled to `size`, (3, size, size) uint8: halved by box filter while that fits, then
    bicubic.

    As the training images of ADM and DiT were prepared (Dhariwal & Nichol 2021).
    """
    image = without_far_ends(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1).copy()


def encode_png(pixels: np.ndarray) -> bytes:
    """`pixels` (3, H, W) uint8 as a PNG, always the same bytes for the same pixels."""
    sink = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(sink, "PNG", optimize=False, compress_level=6)
    return sink.getvalue()


def open_images(
    location: str,
    storage: Directory,
    *,
    name: str,
    seed: int,
    max_bad_fraction: float,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    numbered: Sequence[str] | None = None,
) -> ImageSet:
    """The image set at `location`, checked: `name` is the field that messages speak of.

    Of rows in several splits it takes those for `split` ("train", "validation", "test"), see `find_set`;
    integers without names of their own are called as `unpack` calls them. Lists the folders of `classes`
    alone, or all where None, hashes every file and decodes it, JPEGs small, and a seeded sample in full. What
    was found in a class is kept under `storage` and used again while names, sizes and times are the same.
    Raises InputError for a folder that is missing, empty, or of one class, for rows that can't be read as
    images with classes, and where more than `max_bad_fraction` of its files are no images.
    """
    given = (
        digits.materialise(location, storage)
        if location.startswith("package://")
        else open_directory(location)
    )
    source = find_set(given, name, split, classes)
    unpacked_from = given.uri if isinstance(source, Rows) else None
    directory = (
        unpack(source, storage, f"{name}: {given.uri}", classes, numbered)
        if isinstance(source, Rows)
        else source
    )
    listing = _listing(directory, unpacked_from or directory.uri, name, classes)
    if len(listing) < 2:
        raise InputError(
            f"{name}: {location} holds {len(listing)} class ({', '.join(listing)}); give at least 2 class folders"
        )
    inspected = _inspect(directory, listing, storage)
    files = [(label, path) for label, cls in enumerate(sorted(listing)) for path in sorted(listing[cls])]
    good = [(label, path) for label, path in files if "bad" not in inspected[path]]
    bad = {path: inspected[path]["bad"] for _, path in files if "bad" in inspected[path]}
    for row in permutation(len(good), "sampled-up-front", seed)[:SAMPLED_UP_FRONT]:
        path = good[row][1]
        try:
            decode(directory.read(path))
        except ValueError as error:
            bad[path] = str(error)
    check_bad(name, location, bad, len(files), max_bad_fraction)
    good = [(label, path) for label, path in good if path not in bad]
    found = tuple(sorted(listing))
    labels = np.array([label for label, _ in good], dtype=np.int64)
    for cls, count in zip(found, np.bincount(labels, minlength=len(found)), strict=True):
        if count == 0:
            raise InputError(
                f"{name}: class folder {cls!r} of {location} holds no readable image; fill or remove it"
            )
    ids = tuple(inspected[path]["id"] for _, path in good)
    return ImageSet(directory, found, tuple(path for _, path in good), labels, ids, bad, unpacked_from)


def check_bad(name: str, location: str, bad: dict[str, str], total: int, max_bad_fraction: float) -> None:
    """Raise InputError where more than `max_bad_fraction` of `total` files can't be read."""
    if len(bad) > max_bad_fraction * total:
        path, why = next(iter(bad.items()))
        raise InputError(
            f"{name}: {len(bad)} of {total} files in {location} are no images, more than data.max_bad_fraction="
            f"{max_bad_fraction:g} allows; first: {named(path)} {why}; remove them or raise the limit"
        )


def _listing(directory: Directory, place: str, name: str, classes: Sequence[str] | None) -> Listing:
    """What is visible in the class folders, paths relative to the directory; `place` is what messages call
    it.
    """
    kind = directory.kind
    if kind != fs.FileType.Directory:
        what = "does not exist" if kind == fs.FileType.NotFound else "is no folder"
        raise InputError(f"{name}: {place} {what}; give a folder with one folder of images a class")
    if classes is not None:
        return _of_classes(directory, place, name, classes)
    listing: Listing = {}
    for path, found in _visible(directory).items():
        cls, _, rest = path.partition("/")
        if rest:
            listing.setdefault(cls, {})[path] = found
        elif isinstance(found, str):  # it might have been a class folder
            raise InputError(f"{name}: {place}/{path} {found}; mend or remove it")
    if not listing:
        raise InputError(
            f"{name}: {place} holds no class folders with images; give one folder of images a class"
        )
    return listing


def _of_classes(directory: Directory, place: str, name: str, classes: Sequence[str]) -> Listing:
    """`_listing` of these class folders, each listed by itself: on an object store, by its own prefix."""
    kinds = zip(classes, directory.infos([f"{directory.path}/{cls}" for cls in classes]), strict=True)
    if missing := [cls for cls, info in kinds if info.type != fs.FileType.Directory]:
        raise InputError(
            f"{name}: {place} lacks {len(missing)} of the {len(classes)} class folders that data.classes names: "
            f"{some(missing)}; give the folder that holds them, or change data.classes"
        )
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(classes, pool.map(lambda cls: _visible(directory, cls), classes), strict=True))


def _visible(directory: Directory, within: str = "") -> dict[str, fs.FileInfo | str]:
    files, odd = directory.listed(within)
    found = {**files, **odd}
    return {
        path: found[path]
        for path in sorted(found)
        if not any(part.startswith(".") for part in path.split("/"))
    }


def _inspect(directory: Directory, listing: Listing, storage: Directory) -> dict[str, dict[str, str]]:
    """`{path: {"id": …} or {"bad": why}}` for everything, from the last look at its class where nothing has
    changed.
    """
    cache = storage / "index"

    def key(group: dict[str, fs.FileInfo | str]) -> str:
        files = {path: it if isinstance(it, str) else [it.size, it.mtime_ns] for path, it in group.items()}
        return f"{fingerprint([LOOK, directory.uri, files])}.json"

    def last_look(name: str) -> dict[str, dict[str, str]] | None:
        return cache.read_json(name) if cache.exists(name) else None

    inspected: dict[str, dict[str, str]] = {}
    shown = progress.bar("inspect", sum(map(len, listing.values())), "images", delay=progress.PATIENCE_S)
    with shown, ThreadPoolExecutor(READERS) as pool:
        names = [key(group) for group in listing.values()]
        for name, group, known in zip(names, listing.values(), pool.map(last_look, names), strict=True):
            if known is None:
                looks, known = (
                    pool.map(lambda path, group=group: _look(directory, path, group[path]), group),
                    {},
                )
                for path, found in zip(group, looks, strict=True):
                    known[path] = found
                    shown.update()
                cache.write(name, json.dumps(known).encode())
            else:
                shown.update(len(known))
            inspected |= known
    return inspected


def _look(directory: Directory, path: str, found: fs.FileInfo | str) -> dict[str, str]:
    """The content hash of an image, or why it is none. InputError for a file that this user may not read."""
    if isinstance(found, str):
        return {"bad": found}
    if found.size > MAX_BYTES:
        return {"bad": f"is no readable image ({found.size:,} bytes are more than {MAX_BYTES:,})"}
    try:
        data = directory.read(path)
    except PermissionError as error:
        place, why = (directory / named(path)).uri, error.strerror or error
        raise InputError(f"{place}: can't be read ({why}); let this user read it") from error
    try:
        decode(data, small=True)
    except ValueError as error:
        return {"bad": str(error)}
    return {"id": hashlib.blake2b(data, digest_size=16).hexdigest()}
