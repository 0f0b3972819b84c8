"""Class folders of images: listed, checked up front, decoded.

A data set is a folder with one folder a class and its images anywhere below, on any filesystem. Everything in a class
folder counts as an image, whatever its name ends in; what can't be decoded is listed by name. Hidden files and folders
(leading dot) are not part of the set. Where classes are named, no other folder is looked into: ten of ImageNet's cost a
hundredth of a look at its whole tree.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageOps
from pyarrow import fs

from ..artifacts import Directory, fingerprint, open_directory
from ..errors import InputError
from ..method.keys import permutation
from . import digits
from .classes import some

SAMPLED_UP_FRONT = 64  # images decoded in full before any work starts, chosen by seed
MAX_PIXELS = 64_000_000  # a larger image is a decompression bomb, or should be scaled down beforehand
READERS = 16  # threads; reading is waiting


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set: `classes` sorted by name, one row an image, sorted by class and path."""

    directory: Directory
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the directory
    labels: np.ndarray  # (N,) int64, index into classes
    ids: tuple[str, ...]  # content hash
    bad: dict[str, str] = field(default_factory=dict)  # path → why it was skipped

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.classes, list(zip(self.paths, self.ids, strict=True))])

    def counts(self) -> np.ndarray:
        """Images per class (C,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def subset(self, per_class: int | Sequence[int] | None, *key: int | str) -> np.ndarray:
        """Rows of a random subset of `per_class` images a class, or as many as it says for each class, for `key`.

        In the set's order; all where None.
        """
        if per_class is None:
            return np.arange(len(self))
        chosen = []
        for label in range(len(self.classes)):
            rows, count = np.flatnonzero(self.labels == label), per_class if isinstance(per_class, int) else per_class[label]
            chosen.append(rows[permutation(len(rows), *key, self.classes[label])[:count]])
        return np.sort(np.concatenate(chosen))

    def rows(self, kept: np.ndarray) -> "ImageSet":
        """The set of these rows alone."""
        paths, ids = (tuple(column[row] for row in kept) for column in (self.paths, self.ids))
        return replace(self, paths=paths, ids=ids, labels=self.labels[kept])

    def split(self, share: float) -> tuple["ImageSet", "ImageSet"]:
        """(kept, held out): at least one image of every class is held out, the same ones for every seed of a run.

        Chosen by content, so that copies of an image stay on one side. InputError where a class has nothing left.
        """
        order = np.array([int(hashlib.blake2b(f"split:{i}".encode(), digest_size=8).hexdigest(), 16) for i in self.ids])
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


def decode(data: bytes) -> Image.Image:
    """The image in `data` as RGB, upright by its EXIF orientation. ValueError says why it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}×{image.height} pixels are more than {MAX_PIXELS:,}")
                return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever a malformed file leads them to
        raise ValueError(f"is no readable image ({' '.join(str(error).split())[:120] or type(error).__name__})") from error


def square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square scaled to `size`, (3, size, size) uint8: halved by box filter while that fits, then bicubic.

    As the training images of ADM and DiT were prepared (Dhariwal & Nichol 2021).
    """
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
) -> ImageSet:
    """The image set at `location`, checked: `name` is the field that messages speak of.

    Lists the folders of `classes` alone, or all where None, hashes every file and reads its header, and decodes a seeded
    sample. What was found in a class is kept under `storage` and used again while names, sizes and times are the same.
    Raises InputError for a folder that is missing, empty, or of one class, and where more than `max_bad_fraction` of its
    files are no images.
    """
    directory = digits.materialise(location, storage) if location.startswith("package://") else open_directory(location)
    listing = _listing(directory, name, classes)
    if len(listing) < 2:
        raise InputError(f"{name}: {location} holds {len(listing)} class ({', '.join(listing)}); give at least 2 class folders")
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
            raise InputError(f"{name}: class folder {cls!r} of {location} holds no readable image; fill or remove it")
    return ImageSet(directory, found, tuple(p for _, p in good), labels, tuple(inspected[p]["id"] for _, p in good), bad)


def check_bad(name: str, location: str, bad: dict[str, str], total: int, max_bad_fraction: float) -> None:
    """Raise InputError where more than `max_bad_fraction` of `total` files can't be read."""
    if len(bad) > max_bad_fraction * total:
        path, why = next(iter(bad.items()))
        raise InputError(
            f"{name}: {len(bad)} of {total} files in {location} are no images, more than data.max_bad_fraction="
            f"{max_bad_fraction:g} allows; first: {path} {why}; remove them or raise the limit"
        )


def _listing(directory: Directory, name: str, classes: Sequence[str] | None) -> dict[str, dict[str, fs.FileInfo]]:
    """`{class: {path: info}}` of the visible files, paths relative to the directory."""
    kind = directory.filesystem.get_file_info(directory.path).type
    if kind != fs.FileType.Directory:
        what = "does not exist" if kind == fs.FileType.NotFound else "is no folder"
        raise InputError(f"{name}: {directory.uri} {what}; give a folder with one folder of images a class")
    if classes is not None:
        return _named(directory, name, classes)
    listing: dict[str, dict[str, fs.FileInfo]] = {}
    for path, info in directory.files().items():
        cls, _, rest = path.partition("/")
        if rest and _is_visible(path):
            listing.setdefault(cls, {})[path] = info
    if not listing:
        raise InputError(f"{name}: {directory.uri} holds no class folders with images; give one folder of images a class")
    return listing


def _named(directory: Directory, name: str, classes: Sequence[str]) -> dict[str, dict[str, fs.FileInfo]]:
    """`_listing` of these class folders, each listed by itself: on an object store, by its own prefix."""
    infos = directory.filesystem.get_file_info([f"{directory.path}/{cls}" for cls in classes])
    kinds = zip(classes, infos, strict=True)
    if missing := [cls for cls, info in kinds if info.type != fs.FileType.Directory]:
        raise InputError(
            f"{name}: {directory.uri} lacks {len(missing)} of the {len(classes)} class folders that data.classes names: "
            f"{some(missing)}; give the folder that holds them, or change data.classes"
        )

    def files(cls: str) -> dict[str, fs.FileInfo]:
        return {f"{cls}/{path}": info for path, info in (directory / cls).files().items() if _is_visible(path)}

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(classes, pool.map(files, classes), strict=True))


def _is_visible(path: str) -> bool:
    return not any(part.startswith(".") for part in path.split("/"))


def _inspect(directory: Directory, listing: dict[str, dict[str, fs.FileInfo]], storage: Directory) -> dict[str, dict[str, str]]:
    """`{path: {"id": …} or {"bad": why}}` for every file, from the last look at its class where nothing has changed."""
    cache = storage / "index"

    def key(group: dict[str, fs.FileInfo]) -> str:
        files = {path: [info.size, info.mtime_ns] for path, info in group.items()}
        return f"{fingerprint([directory.uri, files])}.json"

    def last_look(name: str) -> dict[str, dict[str, str]] | None:
        return cache.read_json(name) if cache.exists(name) else None

    def look(path: str) -> dict[str, str]:
        data = directory.read(path)
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.verify()
        except Exception as error:  # as in decode
            return {"bad": f"is no image ({' '.join(str(error).split())[:120]})"}
        return {"id": hashlib.blake2b(data, digest_size=16).hexdigest()}

    inspected: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(READERS) as pool:
        names = [key(group) for group in listing.values()]
        for name, group, known in zip(names, listing.values(), pool.map(last_look, names), strict=True):
            if known is None:
                known = dict(zip(group, pool.map(look, group), strict=True))
                cache.write(name, json.dumps(known).encode())
            inspected |= known
    return inspected
