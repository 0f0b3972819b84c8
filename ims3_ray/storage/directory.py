"""A directory on any filesystem, local or an object store, with one set of methods.

A file is written under a hidden temporary name and moved (local) or uploaded in one piece (object store).
Readers never see half a file, and the remains of a killed process do not count as a part or an image.
"""

import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

from pyarrow import NativeFile, fs

from ims3_ray.display import escape_unprintable, redact_uris
from ims3_ray.errors import InputError

from .retry import with_retries

PLAIN = ("fsspec+", "hf:")  # URIs without queries, in which nothing is escaped
CHUNK = 2**24  # bytes that are read at a time
REASONS = {
    errno.ENOENT: "is a symbolic link to nothing",
    errno.ELOOP: "is a symbolic link that leads to itself",
}
TWICE = "leads to a folder that is listed already"
Result = TypeVar("Result")
Stream = IO[bytes] | NativeFile


@dataclass(frozen=True)
class Directory:
    """A directory on a pyarrow filesystem. Names are relative to it and may contain slashes.

    Transient errors of a remote filesystem are retried (retry.py). Methods raise OutageError if retries fail,
    and InputError if the disk is full.
    """

    filesystem: fs.FileSystem
    path: str
    location: str = ""  # the URI that it was opened by, with host and query

    @property
    def uri(self) -> str:
        """A local path or URI that `open_directory` accepts."""
        if self.is_local:
            return self.path
        return self.location or f"{self.filesystem.type_name.removeprefix('py::')}://{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path: the fingerprint of an artefact."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Directory":
        location = self.location and _below(self.location, name)
        return Directory(self.filesystem, f"{self.path}/{name}", location)

    def with_retries(self, act: Callable[[], Result]) -> Result:
        """Returns `act()`, which uses the filesystem itself and is safe to repeat."""
        return with_retries(self.uri, act)

    @property
    def kind(self) -> fs.FileType:
        """The type of the path: directory, file or absent."""
        return self.with_retries(lambda: self.filesystem.get_file_info(self.path).type)

    def exists(self, name: str) -> bool:
        return (self / name).kind == fs.FileType.File

    def has_directory(self, name: str) -> bool:
        return (self / name).kind == fs.FileType.Directory

    def folders(self) -> dict[str, fs.FileInfo]:
        """Returns the subdirectories by name, sorted; none if the directory is absent."""
        entries = self._select(fs.FileSelector(self.path, allow_not_found=True))
        return {entry.base_name: entry for entry in entries if entry.type == fs.FileType.Directory}

    def files(self) -> dict[str, fs.FileInfo]:
        """Returns every file at any depth by relative name, sorted; none if the directory is absent."""
        return self.list_files()[0]

    def list_files(self, within: str = "") -> tuple[dict[str, fs.FileInfo], dict[str, str]]:
        """Returns `files`, only those below the folder `within` if given, and {name: reason} of odd entries.

        Odd entries are broken or looping symbolic links, devices, and names that are not UTF-8.
        """
        odd: dict[str, str] = {}
        if self.is_local:
            names, odd = _walk(self.path, within)
            selection = [f"{self.path}/{name}" for name in names]
        else:
            place = f"{self.path}/{within}" if within else self.path
            selection = fs.FileSelector(place, recursive=True, allow_not_found=True)
        files = [entry for entry in self._select(selection) if entry.type == fs.FileType.File]
        return {entry.path[len(self.path) + 1 :]: entry for entry in files}, odd

    def _select(self, selection: fs.FileSelector | list[str]) -> list[fs.FileInfo]:
        return sorted(self.infos(selection), key=lambda entry: entry.path)

    def infos(self, paths: Sequence[str] | fs.FileSelector) -> list[fs.FileInfo]:
        """Returns type, size and time of each of the full `paths` on this filesystem."""
        return self.with_retries(lambda: self.filesystem.get_file_info(paths))

    def open_file(self, name: str) -> NativeFile:
        return self.filesystem.open_input_file(f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        return self.read_path(f"{self.path}/{name}")

    def read_path(self, path: str) -> bytes:
        """Returns the bytes of a file anywhere on this filesystem, by its full path."""

        def read() -> bytes:
            with self.filesystem.open_input_file(path) as stream:
                return stream.read()

        return self.with_retries(read)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file in one step. An older file of that name is replaced."""

        def fill(stream: Stream) -> None:
            stream.write(data)

        self.write_stream(name, fill)

    def write_stream(self, name: str, fill: Callable[[Stream], None]) -> None:
        """Write a file of any size. `fill` writes it to a stream; a retry calls `fill` again."""
        target = f"{self.path}/{name}"

        def upload() -> None:
            with self.filesystem.open_output_stream(target) as stream:
                fill(stream)

        (self / name).with_retries(lambda: _replace_local(target, fill) if self.is_local else upload())

    def sha256(self, name: str) -> str:
        """Returns the SHA-256 of a file, which is read in pieces."""

        def read() -> str:
            digest = hashlib.sha256()
            with self.open_file(name) as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
            return digest.hexdigest()

        return self.with_retries(read)

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file. Raises InputError if it is damaged."""
        data = self.read(name)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{(self / name).uri}: is damaged, no JSON ({error}); remove it, and the command that "
                "needs it makes it anew"
            ) from error

    def write_json(self, name: str, value: object) -> None:
        self.write(name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def delete(self) -> None:
        """Remove the file or the whole directory, if there is one."""

        def delete() -> None:
            kind = self.filesystem.get_file_info(self.path).type
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(self.path)

        self.with_retries(delete)


def open_directory(location: str) -> Directory:
    """Returns the directory at a local path or URI (`s3://bucket/prefix`). It need not exist.

    Raises InputError if the URI contains credentials: records, pages and MLflow show locations.
    """
    if redact_uris(location) != location:
        raise InputError(
            f"{location}: holds credentials, which would be kept in records; leave them out, and give them "
            "by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile or the machine's "
            "role"
        )
    if not re.match(r"[a-z][a-z0-9+.-]*://", location):
        return Directory(fs.LocalFileSystem(), str(Path(location).expanduser().absolute()))
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{location}: can't be opened as a filesystem: {' '.join(str(error).split())}"
        ) from error
    if not path and not location.startswith(PLAIN):
        raise InputError(f"{location}: names no bucket; write it as s3://bucket/runs")
    if isinstance(filesystem, fs.S3FileSystem):
        # One request instead of three for a file that fits into one part of an upload. URIs lack this option.
        make, (options,) = filesystem.__reduce__()
        filesystem = make(options | {"allow_delayed_open": True})
    return Directory(filesystem, path.rstrip("/"), "".join(_split_query(location)))


def check_writable(folder: Directory, where: str) -> None:
    """Create `folder`. Raises InputError, prefixed with `where`, if no file can be written in it."""
    name = f".{uuid.uuid4().hex}.tmp"
    try:
        folder.write(name, b"")
        (folder / name).delete()
    except OSError as error:
        raise InputError(
            f"{where} can't be written ({error.strerror or error}); name another place"
        ) from error


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
    """Returns the URI of `name` below another URI."""
    place, query = _split_query(location)
    name = name if location.startswith(PLAIN) else quote(name)
    return f"{place}{'' if place.endswith('/') else '/'}{name}{query}"


def _split_query(location: str) -> tuple[str, str]:
    """Returns a URI without trailing slashes up to its query, and the query with its question mark."""
    place, mark, query = (location, "", "") if location.startswith(PLAIN) else location.partition("?")
    return re.sub(r"(?<=[^/:])/+$", "", place), mark + query


def _walk(root: str, within: str) -> tuple[list[str], dict[str, str]]:
    """Returns the files below `root` or its folder `within`, sorted, and {name: reason} of odd entries.

    Symbolic links are followed. Below each entry of `root`, a folder counts once, however many links lead to
    it: links that lead back up would otherwise have too many paths to list.
    """
    files, odd = list[str](), dict[str, str]()
    if os.path.isdir(root):
        for name in [within] if within else sorted(os.listdir(root)):
            _walk_entry(root, name, files, odd)
    return sorted(files), {escape_unprintable(name): why for name, why in sorted(odd.items())}


def _walk_entry(root: str, first: str, files: list[str], odd: dict[str, str]) -> None:
    seen, pending = {_folder_id(os.stat(root))}, [first]
    links: list[str] = []  # followed last, so that a folder counts by its own name
    while pending or links:
        name = pending.pop() if pending else links.pop(0)
        try:
            if not _is_text(name):
                raise OSError(errno.EILSEQ, "its name is no UTF-8")
            status = os.stat(f"{root}/{name}")
            if stat.S_ISREG(status.st_mode):
                files.append(name)
            elif not stat.S_ISDIR(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            elif _folder_id(status) in seen:
                odd[name] = TWICE
            else:
                seen.add(_folder_id(status))
                for entry in sorted(os.scandir(f"{root}/{name}"), key=lambda entry: entry.name):
                    inner, is_link = f"{name}/{entry.name}", entry.is_symlink()
                    is_file = not is_link and entry.is_file() and _is_text(inner)  # without another stat
                    (files if is_file else links if is_link else pending).append(inner)
        except FileNotFoundError:
            if os.path.islink(f"{root}/{name}"):  # else it was deleted meanwhile: a temporary file
                odd[name] = REASONS[errno.ENOENT]
        except OSError as error:
            odd[name] = REASONS.get(error.errno or 0) or f"can't be listed ({error.strerror or error})"


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _folder_id(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
