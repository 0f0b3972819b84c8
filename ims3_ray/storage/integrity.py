"""Checks an artefact against its checksums: all files for `verify`, kept parts before a stage continues.

The checksum of a part is in the manifest or, before there is one, in the part itself (checksums.py). The
manifest of a damaged artefact is kept as PREVIOUS until the artefact is complete again.
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
    read_manifest,
    read_manifest_file,
)
from .checksums import embedded_checksum_holds
from .rows import prefetch

OTHER_BYTES = "holds other bytes than were written"
SELF_CHECKED = (".parquet", ".safetensors")  # files that may carry a checksum
_logger = logging.getLogger(__name__)


def verify(directory: Directory) -> tuple[dict[str, str], int]:
    """Returns the damaged files with reasons, and the number of files without a checksum.

    It reads every byte, also of the parts of an incomplete artefact.
    """
    try:
        manifest, damaged = read_manifest_file(directory), {}
    except DamagedError as error:
        manifest, damaged = None, error.files
    if manifest:
        names = list(manifest["files"])
        checksums = manifest.get("checksums", {})
        damaged |= changed_files(directory, manifest["files"])
    else:
        names = [name for name in directory.files() if name.endswith(SELF_CHECKED)]
        checksums = _previous_checksums(directory)
    rest = [name for name in names if name not in damaged]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: _damage(directory, name, checksums), rest)
        reasons = dict(zip(rest, found, strict=True))
    damaged |= {name: reason for name, reason in reasons.items() if reason}
    return damaged, sum(reason is None for reason in reasons.values())


def _damage(directory: Directory, name: str, checksums: Mapping[str, str]) -> str | None:
    """Returns why the file is damaged, "" if it is intact, None if it has no checksum."""
    try:
        if name in checksums:
            return "" if directory.sha256(name) == checksums[name] else OTHER_BYTES
        holds = embedded_checksum_holds(directory.read(name), name) if name.endswith(SELF_CHECKED) else None
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    return None if holds is None else "" if holds else OTHER_BYTES


def intact_parts(directory: Directory, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of every part among `names` that an incomplete artefact may keep.

    Its bytes must have the checksum of the previous manifest or, if that lists no such part, the checksum
    that they carry. A warning names each other part.
    """
    found, checksums = directory.files(), _previous_checksums(directory)
    present = [name for name in names if name in found]
    for name, data in zip(present, prefetch(directory.read, present, READERS), strict=True):
        if name in checksums:
            holds = hashlib.sha256(data).hexdigest() == checksums[name]
        else:
            holds = embedded_checksum_holds(data, name)
        if holds:
            yield name, data
        else:
            reason = "carries no checksum" if holds is None else OTHER_BYTES
            _logger.warning("%s %s; it is made again", (directory / name).uri, reason)


def _previous_checksums(directory: Directory) -> dict[str, str]:
    try:
        previous = read_manifest_file(directory, PREVIOUS)
    except DamagedError:
        return {}
    return previous.get("checksums", {}) if previous else {}


def reopen(directory: Directory, damage: Iterable[str]) -> None:
    """Make a damaged artefact incomplete: delete the files in `damage`, and keep its manifest as PREVIOUS."""
    found, damage = directory.files(), set(damage)
    if MANIFEST in found and MANIFEST not in damage:
        directory.write(PREVIOUS, directory.read(MANIFEST))
    for name in (MANIFEST, *damage):
        if name in found:  # a name from a damaged manifest may lead elsewhere
            (directory / name).delete()


def read_or_reopen(directory: Directory) -> Manifest | None:
    """Returns the manifest of a complete artefact. Reopens a damaged one with a warning, and returns None."""
    try:
        return read_manifest(directory)
    except DamagedError as error:
        _logger.warning("%s; it is made again", error.finding)
        reopen(directory, error.files)
        return None
