"""Content hashes of model files, remembered by size and time so that gigabytes are read once."""

import hashlib
from pathlib import Path

from .artifacts import Directory, fingerprint

CHUNK = 2**24  # bytes


def content_hash(path: Path, storage: Directory) -> str:
    """A fingerprint of the file at `path`, or of every file below it."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [[p.relative_to(path).as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    cache, key = storage / "index", f"{fingerprint([str(path.absolute()), stats])}.json"
    if not cache.exists(key):
        cache.write_json(key, fingerprint([[s[0], _digest(p)] for s, p in zip(stats, files, strict=True)]))
    return cache.read_json(key)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
