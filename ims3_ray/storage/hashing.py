"""Content hashes of models, remembered by size and time so that gigabytes are read once.

A model is its weights and its configuration: the files that loaders read. Cards, licences and what git or
the hub put beside them (README.md, .gitattributes, .cache/…) count for nothing.
"""

import hashlib
import re
from pathlib import Path

from ims3_ray.errors import InputError

from .artifacts import Directory, fingerprint

CHUNK = 2**24  # bytes
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
CONFIGURATION = (".json",)


def content_hash(path: Path, storage: Directory) -> str:
    """Returns a fingerprint of the file at `path`, or of the weights and configuration in that folder."""
    files = sorted(p for p in path.rglob("*") if _counts(p, path)) if path.is_dir() else [path]
    stats = [[p.relative_to(path).as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    cache, key = storage / "index", f"{fingerprint([str(path.absolute()), stats])}.json"
    known = _remembered(cache, key)
    if known is None:
        known = fingerprint([[s[0], _digest(p)] for s, p in zip(stats, files, strict=True)])
        cache.write_json(key, known)
    return known


def _counts(path: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not is_hidden and path.suffix in WEIGHTS + CONFIGURATION and path.is_file()


def _remembered(cache: Directory, key: str) -> str | None:
    """None where the file was never hashed, or what was kept of that is damaged."""
    try:
        known = cache.read_json(key) if cache.exists(key) else None
    except InputError:
        return None
    return known if isinstance(known, str) and re.fullmatch("[0-9a-f]{12}", known) else None


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
