"""Class folders: lists their files, and inspects each file for a content hash or a reason why it is no image.

Every file in a class folder counts as an image, whatever its suffix. Hidden files and folders are skipped.
Symbolic links are followed (storage/directory.py). If classes are named, other folders are not listed: ten of
ImageNet's classes cost a hundredth of its whole tree.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pyarrow import fs

from ims3_ray import progress
from ims3_ray.display import escape_unprintable, first_few
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, fingerprint

from .transforms import decode

MAX_BYTES = 2**29  # per file: no image of MAX_PIXELS is larger
LOOK = 2  # raised if other files count as images than before: cached results are then void
READERS = 16  # threads
BATCH = 256  # files per task
FEW = 4096  # files at most that the driver inspects itself, faster than tasks would start
Files = Mapping[str, fs.FileInfo | str]  # path → info, or why it is no file
Listing = Mapping[str, Files]  # by class
Look = dict[str, str]  # {"id": content hash} or {"bad": reason}
Looks = dict[str, Look]  # by path
CLASS_FOLDERS = "give a folder with one folder of images per class"
# (function, arguments of each call) → results in order. cluster/ replaces it by tasks on all nodes.
EACH: Callable[[Callable[..., list[Look]], Sequence[tuple[Any, ...]]], Iterator[list[Look]]] = (
    itertools.starmap
)


def check_exists(directory: Directory, place: str, name: str) -> None:
    """Raise InputError, with `name` and `place`, if there is neither a folder nor a file."""
    if directory.kind == fs.FileType.NotFound:
        raise InputError(f"{name}: {place} does not exist; {CLASS_FOLDERS}")


def list_classes(directory: Directory, place: str, name: str, classes: Sequence[str] | None) -> Listing:
    """Returns the visible files of all class folders, or of `classes`, by paths relative to the directory.

    Errors name the directory `place` and the field `name`.
    """
    check_exists(directory, place, name)
    if directory.kind != fs.FileType.Directory:
        raise InputError(f"{name}: {place} is no folder; {CLASS_FOLDERS}")
    if classes is not None:
        return _list_named(directory, place, name, classes)
    listing: dict[str, dict[str, fs.FileInfo | str]] = {}
    for path, entry in _visible(directory).items():
        cls, _, rest = path.partition("/")
        if rest:
            listing.setdefault(cls, {})[path] = entry
        elif isinstance(entry, str):  # it may have been a class folder
            raise InputError(f"{name}: {place}/{path} {entry}; repair or remove it")
    if not listing:
        raise InputError(f"{name}: {place} holds no class folders with images; {CLASS_FOLDERS}")
    return listing


def _list_named(directory: Directory, place: str, name: str, classes: Sequence[str]) -> Listing:
    """Lists each class folder by itself: on an object store, by its own prefix."""
    kinds = zip(classes, directory.infos([f"{directory.path}/{cls}" for cls in classes]), strict=True)
    if missing := [cls for cls, info in kinds if info.type != fs.FileType.Directory]:
        raise InputError(
            f"{name}: {place} lacks {len(missing)} of the {len(classes)} class folders that data.classes "
            f"names: {first_few(missing)}; give the folder that holds them, or change data.classes"
        )
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(classes, pool.map(lambda cls: _visible(directory, cls), classes), strict=True))


def _visible(directory: Directory, within: str = "") -> Files:
    files, odd = directory.list_files(within)
    entries = sorted([*files.items(), *odd.items()], key=lambda entry: entry[0])
    return {path: entry for path, entry in entries if not path.startswith(".") and "/." not in path}


def inspect(directory: Directory, listing: Listing, storage: Directory) -> Looks:
    """Returns a look at every file. Cached looks of a class serve while nothing in it has changed."""
    cache, looks = storage / "index", Looks()

    def key(files: Files) -> str:
        stats = {path: it if isinstance(it, str) else [it.size, it.mtime_ns] for path, it in files.items()}
        return f"{fingerprint([LOOK, directory.uri, stats])}.json"

    with ThreadPoolExecutor(READERS) as pool:
        names = [key(files) for files in listing.values()]
        cached = list(pool.map(partial(_cached_looks, cache), names, listing.values()))
    unseen = [files for files, last in zip(listing.values(), cached, strict=True) if last is None]
    results = _look_at_all(directory, [entry for files in unseen for entry in files.items()])
    total = sum(map(len, listing.values()))
    with progress.bar("inspect", total, "images", delay=progress.BAR_DELAY_S) as bar:
        for name, files, last in zip(names, listing.values(), cached, strict=True):
            if last is None:
                last = {}
                for path in files:
                    last[path] = next(results)
                    bar.update()
                cache.write(name, json.dumps(last).encode())
            else:
                bar.update(len(last))
            looks |= last
    return looks


def _look_at_all(directory: Directory, files: Sequence[tuple[str, fs.FileInfo | str]]) -> Iterator[Look]:
    sizes = [(path, it if isinstance(it, str) else it.size) for path, it in files]
    each = EACH if len(files) > FEW else itertools.starmap
    batches = [(directory, sizes[start : start + BATCH]) for start in range(0, len(sizes), BATCH)]
    return itertools.chain.from_iterable(each(_look_at, batches))


def _look_at(directory: Directory, files: Sequence[tuple[str, int | str]]) -> list[Look]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda file: _look(directory, *file), files))


def _cached_looks(cache: Directory, name: str, files: Files) -> Looks | None:
    """Returns None if there is no cached result or it is damaged."""
    if not cache.exists(name):
        return None
    try:
        looks = cache.read_json(name)
        is_whole = looks.keys() == set(files) and all(
            look.keys() <= {"id", "bad"} and look for look in looks.values()
        )
    except (ValueError, AttributeError):
        return None
    return looks if is_whole else None


def _look(directory: Directory, path: str, size: int | str) -> Look:
    """Returns the content hash of an image of `size` bytes, or why it is none.

    Raises InputError for a file that can't be read: the user lacks the right, or the node does not see it.
    """
    if isinstance(size, str):
        return {"bad": size}
    if size > MAX_BYTES:
        return {"bad": f"is no readable image ({size:,} bytes are more than {MAX_BYTES:,})"}
    try:
        data = directory.read(path)
    except (PermissionError, FileNotFoundError) as error:
        place, why = (directory / escape_unprintable(path)).uri, error.strerror or error
        remedy = "let this user read it, and, on a cluster, name a place that every node reaches"
        raise InputError(f"{place}: can't be read ({why}); {remedy}") from error
    try:
        decode(data, small=True)
    except ValueError as error:
        return {"bad": str(error)}
    return {"id": hashlib.blake2b(data, digest_size=16).hexdigest()}
