"""Files that carry their own checksum, so that a part can be checked before any manifest names it.

The writer puts BLANK into the file's metadata: Parquet's footer, or the header of safetensors.
`embed_checksum` replaces the zeros by the SHA-256 of the file's name and of all its bytes with the zeros in
place. The name counts, so that two parts that were swapped are found. File and checksum are one object: they
are written in one request, and a killed worker leaves both or none.
"""

import hashlib

KEY = "ims3_ray.sha256"
MARK = b"ims3_ray.sha256="
DIGITS = 64
BLANK = MARK.decode() + "0" * DIGITS


def embed_checksum(data: bytes, name: str) -> bytes:
    """The bytes of the file `name`, which hold BLANK, with its checksum in place of the zeros."""
    start = _start(data)
    assert start is not None, f"{name} has no place for a checksum"
    view = memoryview(data)
    return b"".join([view[:start], _digest(data, name, start), view[start + DIGITS :]])


def carried_checksum_holds(data: bytes, name: str) -> bool | None:
    """Whether the file `name` holds the bytes that were written; None if it carries no checksum."""
    start = _start(data)
    return None if start is None else data[start : start + DIGITS] == _digest(data, name, start)


def _start(data: bytes) -> int | None:
    place = data.rfind(MARK)  # the last one: Parquet's footer follows the rows, which may hold anything
    return None if place < 0 else place + len(MARK)


def _digest(data: bytes, name: str, start: int) -> bytes:
    view = memoryview(data)
    digest = hashlib.sha256(name.encode() + b"\0")
    for piece in (view[:start], b"0" * DIGITS, view[start + DIGITS :]):
        digest.update(piece)
    return digest.hexdigest().encode()
