"""Artefacts: the storage root, fingerprints, and manifests, which make an artefact complete.

    <root>/<noun>/<fingerprint>/part-00000.parquet …, manifest.json

The manifest is written last and in one step, so a stage is complete or absent. It lists every file with size
and checksum. Readers compare sizes, since a lost part must not give a smaller result. integrity.py compares
checksums.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NotRequired, TypedDict, cast

from ims3_ray.display import first_few
from ims3_ray.errors import InputError, OutageError

from .directory import Directory, open_directory

FORMAT = 1
FORMAT_FILE = "format.json"
FINGERPRINT = re.compile(r"[0-9a-f]{12}")
MANIFEST = "manifest.json"
PREVIOUS = "manifest.previous.json"  # manifest of a damaged artefact, until it is complete again
UPDATE = "update ims3_ray or choose another storage"
READERS = 8  # threads that compute checksums


def fingerprint(value: object) -> str:
    """Returns twelve hexadecimal digits for plain data. The order of a mapping's keys does not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_storage(location: str) -> Directory:
    """Returns the storage root. Raises InputError if it can't be written or has a newer format."""
    root = open_directory(location)
    try:
        if check_format(root):
            root.write("writable", b"")
        else:
            root.write_json(FORMAT_FILE, {"format": FORMAT})
    except OSError as error:
        raise InputError(
            f"storage: {root.uri} can't be written ({error.strerror or error}); choose another storage=DIR"
        ) from error
    return root


def check_format(root: Directory) -> bool:
    """Returns True if the root has a format file. Raises InputError if it is damaged or newer than FORMAT."""
    if not root.exists(FORMAT_FILE):
        return False
    try:
        written = root.read_json(FORMAT_FILE)["format"]
        is_newer = written > FORMAT
    except OutageError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"storage: {(root / FORMAT_FILE).uri} is damaged ({error}); remove it, and the next run writes "
            "it anew"
        ) from error
    if is_newer:
        raise InputError(
            f"storage: {root.uri} holds artefacts of format {written}, this version reads up to {FORMAT}; "
            f"{UPDATE}"
        )
    return True


class Summary(TypedDict):
    """Rows and speed of the work on an artefact."""

    rows: int
    unit: str  # of the rows
    seconds: float
    rate: float  # rows per second


class GpuUse(TypedDict):
    """GPUs that a stage used at once, those in the cluster, what limited the use, and their load."""

    used: int
    of: int
    limit: str
    utilisation: NotRequired[float]  # mean, 0 to 1
    max_memory_gb: NotRequired[float]  # of one GPU


class Manifest(Summary):
    """manifest.json of a complete artefact. Some stages add fields."""

    format: int
    files: dict[str, int]  # name → bytes
    checksums: NotRequired[dict[str, str]]  # name → SHA-256; earlier versions wrote none
    stage: str
    version: int
    fingerprint: str
    inputs: dict[str, str]  # noun → fingerprint of the artefact that was read
    device: str
    gpus: NotRequired[GpuUse]
    notes: NotRequired[dict[str, str]]  # unreadable image → reason
    images: NotRequired[list[dict[str, object]]]  # of a distilled set
    history: NotRequired[list[dict[str, float]]]  # training metrics by `step`
    own_classes: NotRequired[list[str] | None]  # of an adapter
    frequency_shift: NotRequired[float | None]


class DamagedError(InputError):
    """A complete artefact has changed since it was written. `files` maps the damaged files to reasons."""

    def __init__(self, directory: Directory, files: Mapping[str, str]):
        self.files = dict(files)
        self.finding = f"{directory.uri} is damaged: {self.words}"
        super().__init__(f"{self.finding}; the command that made it makes what is missing again")

    @property
    def words(self) -> str:
        return first_few((f"{name} {why}" for name, why in self.files.items()), most=3, show=str)

    def __reduce__(self) -> tuple[type[InputError], tuple[str]]:  # a Ray worker sends it as plain InputError
        return InputError, (str(self),)


def read_manifest(directory: Directory) -> Manifest | None:
    """Returns the manifest of a complete artefact, or None if there is none.

    Raises DamagedError if the manifest is damaged or a listed file is missing or has another size, and
    InputError if its format is newer.
    """
    manifest = read_manifest_file(directory)
    if manifest and (damaged := changed_files(directory, manifest["files"])):
        raise DamagedError(directory, damaged)
    return manifest


def read_manifest_file(directory: Directory, name: str = MANIFEST) -> Manifest | None:
    """Returns what `read_manifest` does, without a check of the listed files."""
    if not directory.exists(name):
        return None
    try:
        manifest = directory.read_json(name)
        version = int(manifest["format"])
        manifest["files"] = {file: int(size) for file, size in manifest["files"].items()}
        dict(manifest.get("checksums", {}))  # raises an error if they are no mapping
    except OutageError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(directory, {name: "is no manifest"}) from error
    if version > FORMAT:
        raise InputError(
            f"{(directory / name).uri}: format {version} is newer than {FORMAT}, which this version "
            f"reads; {UPDATE}"
        )
    return manifest


def read_checked(directory: Directory, name: str, manifest: Manifest | None = None) -> bytes:
    """Returns a file's bytes. Raises InputError if the manifest (default: read) has another checksum."""
    data, manifest = directory.read(name), manifest or read_manifest_file(directory)
    checksum = manifest.get("checksums", {}).get(name) if manifest else None
    if checksum and hashlib.sha256(data).hexdigest() != checksum:
        raise InputError(
            f"{(directory / name).uri}: is damaged; remove it, and the command that made it makes it again"
        )
    return data


def changed_files(directory: Directory, sizes: Mapping[str, int]) -> dict[str, str]:
    """Returns the files that are missing or differ from `sizes`, each with the reason."""
    found = directory.files()
    damaged = {}
    for name, size in sizes.items():
        if name not in found:
            damaged[name] = "is not there"
        elif found[name].size != size:
            damaged[name] = f"has {found[name].size} bytes, not {size}"
    return damaged


def summary_of(manifest: Manifest) -> Summary:
    m = manifest
    return {"rows": m["rows"], "unit": m["unit"], "seconds": m["seconds"], "rate": m["rate"]}


def complete(directory: Directory, details: Mapping[str, object]) -> Manifest:
    """Write the manifest, which makes the artefact complete: `details`, and every file's size and checksum.

    `details` may hold `checksums` of some files; those of the others are computed.
    """
    found = directory.files()
    files = {
        name: info.size
        for name, info in found.items()
        if name not in (MANIFEST, PREVIOUS) and not name.endswith(".tmp")
    }
    checksums = cast(Mapping[str, str], details.get("checksums", {}))
    with ThreadPoolExecutor(READERS) as pool:
        values = pool.map(lambda name: checksums.get(name) or directory.sha256(name), files)
        checksums = dict(zip(files, values, strict=True))
    manifest = {"format": FORMAT, **details, "files": files, "checksums": checksums}
    directory.write_json(MANIFEST, manifest)
    if PREVIOUS in found:
        (directory / PREVIOUS).delete()
    return cast(Manifest, manifest)
