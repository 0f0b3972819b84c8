"""Class folders: what lies in them, and what a look at each file says.

Everything in a class folder counts as an image, whatever its name ends in. Hidden files and folders (leading
dot) are not part of the set. Symbolic links are followed (storage/listing.py). Where classes are named, no
other folder is looked into: ten of ImageNet's cost a hundredth of a look at its whole tree.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pyarrow import fs

from ims3_ray import progress
from ims3_ray.display import escape_unprintable, first_few
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, fingerprint

from .transforms import decode

MAX_BYTES = 2**29  # of a file: no image of MAX_PIXELS has more
LOOK = 2  # raised where other files count as images than before: what was found in a class is looked at again
READERS = 16  # threads; reading is waiting
BATCH = 256  # files that a task looks at
FEW = 4096  # files at most that this machine looks at alone, before a task elsewhere would have begun
Files = Mapping[str, fs.FileInfo | str]  # path → what is there, or why it is no file
Listing = Mapping[str, Files]  # of each class
Look = dict[str, str]  # {"id": content hash} or {"bad": why}
Looks = dict[str, Look]  # by path
CLASS_FOLDERS = "give a folder with one folder of images per class"
# (function, its arguments for each call) → what it gives, in order; cluster/ puts one here for its nodes
EACH: Callable[[Callable[..., list[Look]], Iterable[tuple[Any, ...]]], Iterator[list[Look]]] = (
    itertools.starmap
)


def check_exists(directory: Directory, place: str, name: str) -> None:
    """Raise InputError, with `name` and `place`, if there is neither a folder nor a file."""
    if directory.kind == fs.FileType.NotFound:
        raise InputError(f"{name}: {place} does not exist; {CLASS_FOLDERS}")


def list_classes(directory: Directory, place: str, name: str, classes: Sequence[str] | None) -> Listing:
    """What is visible in the class folders, paths relative to the directory, which messages call `place`."""
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
        elif isinstance(entry, str):  # it might have been a class folder
            raise InputError(f"{name}: {place}/{path} {entry}; mend or remove it")
    if not listing:
        raise InputError(
            f"{name}: {place} holds no class folders with images; give one folder of images a class"
        )
    return listing


def _list_named(directory: Directory, place: str, name: str, classes: Sequence[str]) -> Listing:
    """These class folders, each listed by itself: on an object store, by its own prefix."""
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
    """Looks at everything; the last look at a class serves where nothing in it has changed."""
    cache, looks = storage / "index", Looks()

    def key(files: Files) -> str:
        stats = {path: it if isinstance(it, str) else [it.size, it.mtime_ns] for path, it in files.items()}
        return f"{fingerprint([LOOK, directory.uri, stats])}.json"

    with ThreadPoolExecutor(READERS) as pool:
        names = [key(files) for files in listing.values()]
        known = list(pool.map(partial(_last_looks, cache), names, listing.values()))
    unseen = [files for files, last in zip(listing.values(), known, strict=True) if last is None]
    found = _look_at_all(directory, [entry for files in unseen for entry in files.items()])
    total = sum(map(len, listing.values()))
    with progress.bar("inspect", total, "images", delay=progress.BAR_DELAY_S) as shown:
        for name, files, last in zip(names, listing.values(), known, strict=True):
            if last is None:
                last = {}
                for path in files:
                    last[path] = next(found)
                    shown.update()
                cache.write(name, json.dumps(last).encode())
            else:
                shown.update(len(last))
            looks |= last
    return looks


def _look_at_all(directory: Directory, files: Sequence[tuple[str, fs.FileInfo | str]]) -> Iterator[Look]:
    """A look at each file, in their order, a batch after another."""
    sizes = [(path, it if isinstance(it, str) else it.size) for path, it in files]
    each = EACH if len(files) > FEW else itertools.starmap
    batches = ((directory, sizes[start : start + BATCH]) for start in range(0, len(sizes), BATCH))
    return itertools.chain.from_iterable(each(_look_at, batches))


def _look_at(directory: Directory, files: Sequence[tuple[str, int | str]]) -> list[Look]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda file: _look(directory, *file), files))


def _last_looks(cache: Directory, name: str, files: Files) -> Looks | None:
    """What was found in a class; None where it was not looked at, or what was kept of it is damaged."""
    if not cache.exists(name):
        return None
    try:
        last = cache.read_json(name)
        is_whole = last.keys() == set(files) and all(
            look.keys() <= {"id", "bad"} and look for look in last.values()
        )
    except (ValueError, AttributeError):
        return None
    return last if is_whole else None


def _look(directory: Directory, path: str, size: int | str) -> Look:
    """The content hash of an image of so many bytes, or why it is none.

    InputError for a file that this user may not read, or a node does not see.
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
