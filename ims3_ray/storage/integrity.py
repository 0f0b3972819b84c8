"""Whether an artefact is as it was written: all of it for `verify`, each kept part before it is continued.

A part is checked by the checksum of the manifest, or, while there is none, by the checksum that it carries
(checksums.py). The manifest of a damaged artefact is kept as PREVIOUS until the artefact is complete again.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from .artifacts import (
    MANIFEST,
    PREVIOUS,
    READERS,
    DamagedError,
    Directory,
    Manifest,
    changed_files,
    known_checksums,
    read_manifest,
    read_manifest_file,
)
from .checksums import carried_checksum_holds
from .prefetch import ahead

OTHER_BYTES = "holds other bytes than were written"
SELF_CHECKED = (".parquet", ".safetensors")  # files that may carry a checksum
_logger = logging.getLogger(__name__)


def verify(directory: Directory) -> tuple[dict[str, str], int]:
    """Returns the damaged files with reasons, and the number of files that have no checksum.

    Every byte is read, whatever else is damaged. Parts of an incomplete artefact are checked as well.
    """
    try:
        manifest, damaged = read_manifest_file(directory), {}
    except DamagedError as error:
        manifest, damaged = None, error.files
    if manifest:
        names = [name for name in manifest["files"] if name != MANIFEST]
        known = known_checksums(manifest)
        damaged |= changed_files(directory, manifest["files"])
    else:
        names = [name for name in directory.files() if name.endswith(SELF_CHECKED)]
        known = _previous_checksums(directory)
    rest = [name for name in names if name not in damaged]
    with ThreadPoolExecutor(READERS) as pool:
        reasons = dict(zip(rest, pool.map(lambda name: _damage(directory, name, known), rest), strict=True))
    damaged |= {name: reason for name, reason in reasons.items() if reason}
    return damaged, sum(reason is None for reason in reasons.values())


def _damage(directory: Directory, name: str, known: Mapping[str, str]) -> str | None:
    """Returns why the file is damaged, "" if it is not, None if it has no checksum."""
    try:
        if name in known:
            return "" if directory.sha256(name) == known[name] else OTHER_BYTES
        holds = carried_checksum_holds(directory.read(name), name) if name.endswith(SELF_CHECKED) else None
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    return None if holds is None else "" if holds else OTHER_BYTES


def intact_parts(directory: Directory, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of every part that an incomplete artefact may keep; `names` are its parts.

    A part is kept if its bytes have the checksum of the previous manifest, or, if that names no such part,
    the checksum that they carry. A warning names the others.
    """
    there, known = directory.files(), _previous_checksums(directory)
    present = [name for name in names if name in there]
    for name, data in zip(present, ahead(directory.read, present, READERS), strict=True):
        if name in known:
            holds = hashlib.sha256(data).hexdigest() == known[name]
        else:
            holds = carried_checksum_holds(data, name)
        if holds:
            yield name, data
        else:
            reason = "carries no checksum" if holds is None else OTHER_BYTES
            _logger.warning("%s %s; it is made again", (directory / name).uri, reason)


def _previous_checksums(directory: Directory) -> dict[str, str]:
    """Returns the checksums of the manifest that the artefact had before it was damaged."""
    try:
        previous = read_manifest_file(directory, PREVIOUS)
    except DamagedError:
        return {}
    return known_checksums(previous) if previous else {}


def reopen(directory: Directory, damage: Iterable[str]) -> None:
    """Make a damaged artefact incomplete: delete the files in `damage`, and keep its manifest as PREVIOUS."""
    there, damage = directory.files(), set(damage)
    if MANIFEST in there and MANIFEST not in damage:
        directory.write(PREVIOUS, directory.read(MANIFEST))
    for name in (MANIFEST, *damage):
        if name in there:  # else it may lead anywhere
            (directory / name).delete()


def read_or_reopen(directory: Directory) -> Manifest | None:
    """Returns the manifest of a complete artefact; None after a damaged one was reopened, with a warning."""
    try:
        return read_manifest(directory)
    except DamagedError as error:
        _logger.warning("%s; it is made again", error.finding)
        reopen(directory, error.files)
        return None
