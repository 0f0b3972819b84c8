"""Unpacks rows once into class folders below the storage, which every reader of images reads.

    <storage>/unpacked/<key>/<class>/row-0000000
    <storage>/unpacked/<key>.complete    written last: JSON {images: number, label_names: of integer labels}

A row always has the same file name and bytes, so that a killed unpacking can be repeated.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ims3_ray import progress
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, fingerprint
from ims3_ray.storage.lease import exclusive

from .classes import is_folder_name
from .sources import Batch, ClassNames, Rows, read_rows

WRITERS = 16  # threads
MAX_LABEL = 2**63 - 1
LAYOUT = 2  # raised if rows are unpacked differently


def unpack(
    rows: Rows, storage: Directory, where: str, classes: ClassNames, label_names: ClassNames
) -> Directory:
    """Returns class folders of the rows below `storage`, written on first use.

    `classes` filters the rows. `label_names` names integer labels that the set itself does not name; without
    it, the decimal number is the class. Raises InputError, prefixed with `where`, for unreadable files,
    columns without images or classes, a row without image or class, and a class that can't be a folder.
    """
    files = [
        [_identity(rows.directory, info.path), info.size, info.mtime_ns]
        for info in rows.directory.infos(rows.files)
    ]
    key = [files, classes and sorted(classes), label_names and list(label_names)]
    return unpack_batches(lambda: read_rows(rows, where), key, storage, where, classes, label_names)


def unpack_batches(
    read: Callable[[], Iterable[Batch]],
    identity: object,
    storage: Directory,
    where: str,
    classes: ClassNames,
    label_names: ClassNames,
) -> Directory:
    """Does what `unpack` does with the batches of `read()`. Equal `identity` means equal batches."""
    key, unpacked = fingerprint([LAYOUT, identity]), storage / "unpacked"
    if unpacked.exists(f"{key}.complete"):
        return unpacked / key
    with exclusive(unpacked / key):
        if unpacked.exists(f"{key}.complete"):
            return unpacked / key
        written, bar = 0, progress.bar("unpack", None, "images", delay=progress.BAR_DELAY_S)
        names: ClassNames = None
        with bar, ThreadPoolExecutor(WRITERS) as pool:
            for files, names in _files(read(), where, classes, label_names):  # noqa: B007 all have the same names
                for _ in pool.map((unpacked / key).write, files, files.values()):
                    bar.update()
                written += len(files)
        if not written:
            raise InputError(
                f"{where} has no rows{' of the classes that data.classes names' if classes else ''}; "
                "give images"
            )
        complete = {"images": written, "label_names": names}
        unpacked.write(f"{key}.complete", json.dumps(complete).encode())
    return unpacked / key


def check_unpacked(folder: Directory, num_images: int) -> tuple[str, ...] | None:
    """Returns the names of integer labels in the rows that were unpacked into `folder`, if they had any.

    Raises InputError if the folder no longer holds all images.
    """
    head, _, key = folder.path.rpartition("/")
    complete = json.loads(Directory(folder.filesystem, head).read(f"{key}.complete"))
    if num_images != complete["images"]:
        raise InputError(
            f"{folder.uri} holds {num_images} of {complete['images']} unpacked images; remove {folder.uri} "
            f"and {folder.uri}.complete, and repeat"
        )
    return tuple(names) if (names := complete["label_names"]) else None


def _identity(directory: Directory, path: str) -> str:
    """Returns a location that is the same for all links to a file."""
    return str(Path(path).resolve()) if directory.is_local else f"{directory.filesystem.type_name}://{path}"


def _files(
    batches: Iterable[Batch], where: str, classes: ClassNames, label_names: ClassNames
) -> Iterator[tuple[dict[str, bytes], ClassNames]]:
    """Yields {path in the class folders: encoded image} of a batch, and the names of integer labels."""
    row = 0
    for labels, images, names in batches:
        files = {}
        for label, image in zip(labels, images, strict=True):
            at = f"{where} row {row}"
            cls = _class_name(label, names or label_names, at)
            if classes is None or cls in classes:
                if not is_folder_name(cls):
                    raise InputError(f"{at} has class {cls!r}, which can't be a folder's name; rename it")
                files[f"{cls}/row-{row:07d}"] = _encoded(image, at)
            row += 1
        yield files, names or label_names


def _class_name(label: int | str | None, names: ClassNames, at: str) -> str:
    if isinstance(label, str):
        return label
    if label is None or not 0 <= label <= MAX_LABEL:
        raise InputError(
            f"{at} has {'no label' if label is None else f'label {label}, which is no class'}; "
            "leave such rows out, or give a split that has labels"
        )
    if not names:
        return str(label)
    if label >= len(names):
        raise InputError(
            f"{at} has label {label}, but there are {len(names)} classes; give 0 … {len(names) - 1}"
        )
    return names[label]


def _encoded(image: dict[str, bytes | str | None] | bytes | None, at: str) -> bytes:
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes) or not data:
        file = ", but names a file" if isinstance(image, dict) and image.get("path") else ""
        raise InputError(
            f"{at} holds no image bytes{file}; write the set with its images embedded, as save_to_disk does"
        )
    return data
