"""Checksums of models, and checksums that a file carries itself.

A part must be verifiable before a manifest lists it. Its writer puts BLANK into the metadata: Parquet's
footer or the header of safetensors. `embed_checksum` replaces the zeros by the SHA-256 of the file's name and
of its bytes with the zeros in place. The name is hashed too, so that swapped parts are detected. File and
checksum are written in one request: a killed worker leaves both or neither.
"""

import functools
import hashlib
from pathlib import Path

from ims3_ray.errors import InputError

from .artifacts import FINGERPRINT, Directory, fingerprint

KEY = "ims3_ray.sha256"
MARK = b"ims3_ray.sha256="
DIGITS = 64
BLANK = MARK.decode() + "0" * DIGITS
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
CONFIGURATION = (".json",)


def embed_checksum(data: bytes, name: str) -> bytes:
    """Returns the bytes of the file `name`, which contain BLANK, with the checksum in place of the zeros."""
    start = _start(data)
    assert start is not None, f"{name} has no place for a checksum"
    view = memoryview(data)
    return b"".join([view[:start], _digest(data, name, start), view[start + DIGITS :]])


def embedded_checksum_holds(data: bytes, name: str) -> bool | None:
    """Returns True if the file `name` has the bytes that were written, None if it carries no checksum."""
    start = _start(data)
    return None if start is None else data[start : start + DIGITS] == _digest(data, name, start)


def _start(data: bytes) -> int | None:
    place = data.rfind(MARK)  # the last one: Parquet's footer follows the rows, which may contain MARK
    return None if place < 0 else place + len(MARK)


def _digest(data: bytes, name: str, start: int) -> bytes:
    view = memoryview(data)
    digest = hashlib.sha256(name.encode() + b"\0")
    for piece in (view[:start], b"0" * DIGITS, view[start + DIGITS :]):
        digest.update(piece)
    return digest.hexdigest().encode()


def content_hash(path: Path, storage: Directory) -> str:
    """Returns a fingerprint of a file, or of the weights and configuration files in a model's folder.

    Model cards, licences and hidden files do not count. The result is cached under the files' sizes and
    times, so that gigabytes are read once.
    """
    files = sorted(p for p in path.rglob("*") if _counts(p, path)) if path.is_dir() else [path]
    stats = [[p.relative_to(path).as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    cache, key = storage / "index", f"{fingerprint([str(path.absolute()), stats])}.json"
    value = _cached(cache, key)
    if value is None:
        value = fingerprint([[s[0], _file_digest(p)] for s, p in zip(stats, files, strict=True)])
        cache.write_json(key, value)
    return value


def _counts(path: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not is_hidden and path.suffix in WEIGHTS + CONFIGURATION and path.is_file()


def _cached(cache: Directory, key: str) -> str | None:
    """Returns None if the file was never hashed or its cache entry is damaged."""
    try:
        value = cache.read_json(key) if cache.exists(key) else None
    except InputError:
        return None
    return value if isinstance(value, str) and FINGERPRINT.fullmatch(value) else None


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, functools.partial(hashlib.blake2b, digest_size=16))
    return digest.hexdigest()
