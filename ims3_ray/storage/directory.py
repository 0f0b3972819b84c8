"""A directory on any filesystem, local or an object store, by one set of methods; places as URIs.

Single files are written to a hidden temporary name and moved (local), or in one upload (object stores): a
reader never sees half a file, and what a killed process leaves of one is no part of a set of images.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

from pyarrow import NativeFile, fs

from ims3_ray.display import redact_uris
from ims3_ray.errors import InputError

from .retry import with_retries
from .walk import listed

PLAIN = ("fsspec+", "hf:")  # URIs without queries, where nothing is escaped
CHUNK = 2**24  # bytes that are read at a time
Result = TypeVar("Result")
Stream = IO[bytes] | NativeFile


@dataclass(frozen=True)
class Directory:
    """A directory on a pyarrow filesystem. Names are relative to it and may hold slashes.

    Errors of a remote one that may pass are waited out (`patience.py`). InputError when they don't, and for a
    full disk.
    """

    filesystem: fs.FileSystem
    path: str
    location: str = ""  # the URI that it was opened by, with host and query

    @property
    def uri(self) -> str:
        """What a person, or `open_directory`, can open: a local path or a URI."""
        if self.is_local:
            return self.path
        return self.location or f"{self.filesystem.type_name.removeprefix('py::')}://{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path: of an artefact, its fingerprint."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Directory":
        return Directory(
            self.filesystem, f"{self.path}/{name}", self.location and _below(self.location, name)
        )

    def with_retries(self, act: Callable[[], Result]) -> Result:
        """What `act()` gives, which reads or writes here by the filesystem itself and is safe to repeat."""
        return with_retries(self.uri, act)

    @property
    def kind(self) -> fs.FileType:
        """What there is at this place: a directory, a file or nothing."""
        return self.with_retries(lambda: self.filesystem.get_file_info(self.path).type)

    def exists(self, name: str) -> bool:
        return (self / name).kind == fs.FileType.File

    def has_directory(self, name: str) -> bool:
        return (self / name).kind == fs.FileType.Directory

    def folders(self) -> dict[str, fs.FileInfo]:
        """The directories right below, by name, sorted; empty where the directory is missing."""
        entries = self._select(fs.FileSelector(self.path, allow_not_found=True))
        return {entry.base_name: entry for entry in entries if entry.type == fs.FileType.Directory}

    def files(self) -> dict[str, fs.FileInfo]:
        """Every file below, by its name relative to this directory, sorted; empty where it is missing."""
        return self.listed()[0]

    def listed(self, within: str = "") -> tuple[dict[str, fs.FileInfo], dict[str, str]]:
        """`files`, or those below the folder `within` alone; and by name why anything there is no file."""
        odd: dict[str, str] = {}
        if self.is_local:
            names, odd = listed(self.path, within)
            wanted = [f"{self.path}/{name}" for name in names]
        else:
            place = f"{self.path}/{within}" if within else self.path
            wanted = fs.FileSelector(place, recursive=True, allow_not_found=True)
        files = [entry for entry in self._select(wanted) if entry.type == fs.FileType.File]
        return {entry.path[len(self.path) + 1 :]: entry for entry in files}, odd

    def _select(self, wanted: fs.FileSelector | list[str]) -> list[fs.FileInfo]:
        entries = self.with_retries(lambda: self.filesystem.get_file_info(wanted))
        return sorted(entries, key=lambda entry: entry.path)

    def infos(self, paths: Sequence[str]) -> list[fs.FileInfo]:
        """What there is at each of `paths`, full ones on this filesystem."""
        return self.with_retries(lambda: self.filesystem.get_file_info(list(paths)))

    def read(self, name: str) -> bytes:
        return self.read_path(f"{self.path}/{name}")

    def read_path(self, path: str) -> bytes:
        """The bytes of a file anywhere on this filesystem, by its full path."""

        def read() -> bytes:
            with self.filesystem.open_input_file(path) as stream:
                return stream.read()

        return self.with_retries(read)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file at once; an older one of that name is replaced."""
        target = f"{self.path}/{name}"
        (self / name).with_retries(
            lambda: _write_local(target, data) if self.is_local else self._upload(target, data)
        )

    def _upload(self, target: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(target) as stream:
            stream.write(data)

    def write_in_pieces(self, name: str, fill: Callable[[Stream], None]) -> None:
        """Write a file that need not fit into memory: `fill` writes it to a stream, and again if repeated."""
        target = f"{self.path}/{name}"

        def upload() -> None:
            with self.filesystem.open_output_stream(target) as stream:
                fill(stream)

        (self / name).with_retries(lambda: _replace_local(target, fill) if self.is_local else upload())

    def sha256(self, name: str) -> str:
        """Of the file's bytes, a piece of it in memory at a time."""

        def read() -> str:
            digest = hashlib.sha256()
            with self.filesystem.open_input_file(f"{self.path}/{name}") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
            return digest.hexdigest()

        return self.with_retries(read)

    def read_json(self, name: str) -> Any:
        """What the JSON file holds. InputError where it is damaged."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{(self / name).uri}: is damaged, no JSON ({error}); remove it, and what needs it makes "
                "it anew"
            ) from error

    def write_json(self, name: str, value: object) -> None:
        self.write(name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def delete(self) -> None:
        """Remove the file, or the directory with all below it; nothing where it is not there."""

        def delete() -> None:
            kind = self.filesystem.get_file_info(self.path).type
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(self.path)

        self.with_retries(delete)


def _write_local(target: str, data: bytes) -> None:
    def fill(stream: Stream) -> None:
        stream.write(data)

    _replace_local(target, fill)


def _replace_local(target: str, fill: Callable[[Stream], None]) -> None:
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as stream:
            fill(stream)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _below(location: str, name: str) -> str:
    """The URI of what is called `name` below another URI."""
    place, query = _parted(location)
    name = name if location.startswith(PLAIN) else quote(name)
    return f"{place}{'' if place.endswith('/') else '/'}{name}{query}"


def _parted(location: str) -> tuple[str, str]:
    """A URI up to its query, and that with its question mark."""
    place, mark, query = (location, "", "") if location.startswith(PLAIN) else location.partition("?")
    return re.sub(r"(?<=[^/:])/+$", "", place), mark + query


def _in_one_request(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same, but on S3 a file that fits a part of an upload is put at once: one request in place of three.

    By what pickle keeps of it: a URI has no word for that option.
    """
    if not isinstance(filesystem, fs.S3FileSystem):
        return filesystem
    make, (options,) = filesystem.__reduce__()
    return make(options | {"allow_delayed_open": True})


def open_directory(location: str) -> Directory:
    """The directory at a local path or URI (`s3://bucket/prefix`); it need not exist yet.

    InputError for a URI that holds credentials: places stand in records, on pages and in MLflow.
    """
    if redact_uris(location) != location:
        raise InputError(
            f"{location}: holds credentials, which would be kept in records; leave them out, and give them "
            "by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile or the machine's "
            "role"
        )
    if re.match(r"[a-z][a-z0-9+.-]*://", location):
        try:
            filesystem, path = fs.FileSystem.from_uri(location)
        except (ValueError, OSError) as error:
            raise InputError(
                f"{location}: can't be opened as a filesystem: {' '.join(str(error).split())}"
            ) from error
        if not path and not location.startswith(PLAIN):
            raise InputError(f"{location}: names no bucket; write it as s3://bucket/runs")
        return Directory(_in_one_request(filesystem), path.rstrip("/"), "".join(_parted(location)))
    return Directory(fs.LocalFileSystem(), str(Path(location).expanduser().absolute()))


def refuse_unwritable(folder: Directory, where: str) -> None:
    """InputError, which begins with `where`, for a folder in which no file can be written. It is made."""
    name = f".{uuid.uuid4().hex}.tmp"
    try:
        folder.write(name, b"")
        (folder / name).delete()
    except OSError as error:
        raise InputError(
            f"{where} can't be written ({error.strerror or error}); name another place"
        ) from error
