"""Rows unpacked once into class folders below the storage, so that whatever reads images reads these too.

    image or img                                 struct {bytes, path} or binary: an encoded image label,
    class, labels or fine_label           integer, named by the file's own ClassLabel where it has one; or a
    string

    <storage>/unpacked/<key>/<class>/row-0000000
    <storage>/unpacked/<key>.complete            written last

A row's file has the same name and bytes whoever writes it, so that an unpacking that was killed is done
again, and two at once do not disturb each other.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ims3_ray import progress
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, fingerprint

from .distilled import is_folder_name
from .sources import Rows

IMAGE_COLUMNS = ("image", "img")  # the first that is there
CLASS_COLUMNS = ("label", "class", "labels", "fine_label")  # likewise
ROWS = 256  # unpacked at a time: a few hundred MB of large photographs
WRITERS = 16  # threads; writing is waiting
LAYOUT = 1  # raised where rows are unpacked otherwise than before


def unpack(
    rows: Rows, storage: Directory, where: str, classes: Sequence[str] | None, numbered: Sequence[str] | None
) -> Directory:
    """The folder below `storage` that holds the images as class folders; written where it is not there yet.

    Rows of other classes than `classes` are left out. `numbered` are the classes that integers without names
    count; where None, an integer's class is called by its decimals. InputError, which begins with `where`,
    for files that can't be read, columns that hold no images or classes, a row without image bytes or class,
    and a class that can't be a folder.
    """
    files = [
        [_place(rows.directory, info.path), info.size, info.mtime_ns]
        for info in rows.directory.infos(rows.files)
    ]
    key = fingerprint([LAYOUT, files, classes and sorted(classes), numbered and list(numbered)])
    unpacked = storage / "unpacked"
    if not unpacked.exists(f"{key}.complete"):
        written, shown = 0, progress.bar("unpack", None, "images", delay=progress.PATIENCE_S)
        with shown, ThreadPoolExecutor(WRITERS) as pool:
            for images in _images(rows, where, classes, numbered):
                for _ in pool.map((unpacked / key).write, images, images.values()):
                    shown.update()
                written += len(images)
        if not written:
            raise InputError(
                f"{where} has no rows{' of the classes that data.classes names' if classes else ''}; give images"
            )
        unpacked.write(f"{key}.complete", b"")
    return unpacked / key


def _place(directory: Directory, path: str) -> str:
    """Where a file lies: on a disk one place, whatever links lead to it."""
    return str(Path(path).resolve()) if directory.is_local else f"{directory.filesystem.type_name}://{path}"


def _images(
    rows: Rows, where: str, classes: Sequence[str] | None, numbered: Sequence[str] | None
) -> Iterator[dict[str, bytes]]:
    """{path in the class folders: encoded image} of some rows at a time."""
    row = 0
    try:
        for path in rows.files:
            for labels, images, names in _cells(rows, path, where):
                kept = {}
                for label, image in zip(labels, images, strict=True):
                    at = f"{where} row {row}"
                    cls = _class_name(label, names or numbered, at)
                    if classes is None or cls in classes:
                        kept[f"{_folder(cls, at)}/row-{row:07d}"] = _encoded(image, at)
                    row += 1
                yield kept
    except (pa.ArrowException, OSError) as error:
        kind, why = "Parquet" if rows.is_parquet else "Arrow stream", " ".join(str(error).split())[:200]
        raise InputError(
            f"{where} is no readable {kind}: {path.rsplit('/', 1)[-1]}: {why}; write it anew"
        ) from error


def _cells(rows: Rows, path: str, where: str) -> Iterator[tuple[list, list, list[str]]]:
    """(class cells, image cells, what integers among the classes are called, if anything) of some rows of a
    file at a time.
    """
    with _opened(rows.directory, path) as stream:
        reader = pq.ParquetFile(stream) if rows.is_parquet else pa.ipc.open_stream(stream)
        schema = reader.schema_arrow if rows.is_parquet else reader.schema
        image, column = _columns(schema, where)
        names = _class_names(schema, column, where)
        for batch in reader.iter_batches(ROWS, columns=[image, column]) if rows.is_parquet else reader:
            chosen = batch.select([column, image])
            chosen.validate(full=True)  # else offsets that lead out of a broken file would be followed
            for start in range(0, len(chosen), ROWS):
                cells = chosen.slice(start, ROWS)
                yield cells[column].to_pylist(), cells[image].to_pylist(), names


def _opened(directory: Directory, path: str) -> pa.NativeFile:
    """A file of this machine, or the bytes of a remote one at once: what was read of it could not be read
    again.
    """
    return (
        directory.filesystem.open_input_file(path)
        if directory.is_local
        else pa.BufferReader(directory.read_path(path))
    )


def _columns(schema: pa.Schema, where: str) -> tuple[str, str]:
    """The names of the image and the class column, after a look at what they hold."""
    image, column = (
        next((c for c in known if c in schema.names), None) for known in (IMAGE_COLUMNS, CLASS_COLUMNS)
    )
    if missing := [
        known[0] for known, found in ((IMAGE_COLUMNS, image), (CLASS_COLUMNS, column)) if found is None
    ]:
        raise InputError(
            f"{where} has no column {', '.join(missing)}; it holds {', '.join(schema.names)}; rename yours"
        )
    cell, label = schema.field(image).type, schema.field(column).type
    encoded = (
        cell.field("bytes").type if pa.types.is_struct(cell) and cell.get_field_index("bytes") >= 0 else cell
    )
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise InputError(
            f"{where}: column {image} holds {cell}; it must hold encoded images: binary, or struct {{bytes, path}}"
        )
    label = label.value_type if pa.types.is_dictionary(label) else label
    if not (pa.types.is_integer(label) or pa.types.is_string(label) or pa.types.is_large_string(label)):
        raise InputError(f"{where}: column {column} holds {label}; it must hold integers or strings")
    return image, column


def _class_names(schema: pa.Schema, column: str, where: str) -> list[str]:
    """The ClassLabel's names in the file itself, none where it has none."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        return [str(name) for name in info.get("features", {}).get(column, {}).get("names") or ()]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f"{where}: its metadata `huggingface` can't be read ({error}); write the set anew"
        ) from error


def _class_name(label: int | str | None, names: Sequence[str] | None, at: str) -> str:
    if isinstance(label, int) and label < 0:
        raise InputError(
            f"{at} has label {label}, which stands for none; leave such rows out, or give a split that has labels"
        )
    if isinstance(label, int) and names:
        if label >= len(names):
            raise InputError(
                f"{at} has label {label}, but there are {len(names)} classes; give 0 … {len(names) - 1}"
            )
        return names[label]
    if label is None:
        raise InputError(f"{at} has no label; leave such rows out, or give a split that has labels")
    return str(label)


def _folder(cls: str, at: str) -> str:
    if not is_folder_name(cls):
        raise InputError(f"{at} has class {cls!r}, which can't be a folder's name; rename it")
    return cls


def _encoded(image: dict[str, bytes | str | None] | bytes | None, at: str) -> bytes:
    data = image.get("bytes") if isinstance(image, dict) else image
    if not data:
        named = ", but names a file" if isinstance(image, dict) and image.get("path") else ""
        raise InputError(
            f"{at} holds no image bytes{named}; write the set with its images embedded, as save_to_disk does"
        )
    return data
