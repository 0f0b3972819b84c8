"""Rows unpacked once into class folders below the storage, so that whatever reads images reads these too.

    image or img                         struct {bytes, path} or binary: an encoded image
    label, class, labels or fine_label   integer, by the set's own ClassLabel where it has one; or a string

    <storage>/unpacked/<key>/<class>/row-0000000
    <storage>/unpacked/<key>.complete      written last: JSON of what integers count, or nothing

Hugging Face `datasets` reads the rows, pyarrow alone those of this project's own product, one file at a time
and as plain Arrow: nothing in them is decoded, fetched or run. A row's file has the same name and bytes
whoever writes it, so that an unpacking that was killed is done again.
"""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ims3_ray import progress
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, fingerprint
from ims3_ray.storage.lease import exclusive

from .classes import is_folder_name
from .sources import Rows, label_names

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

IMAGE_COLUMNS = ("image", "img")  # the first that is there
CLASS_COLUMNS = ("label", "class", "labels", "fine_label")  # likewise
ROWS = 256  # unpacked at a time: a few hundred MB of large photographs
WRITERS = 16  # threads; writing is waiting
MOST_LABEL = 2**63 - 1
LAYOUT = 1  # raised where rows are unpacked otherwise than before
Names = Sequence[str] | None  # of classes
Cells = tuple[list, list, Names]  # of some rows: classes, images, what integers among the classes are called


def unpack(rows: Rows, storage: Directory, where: str, classes: Names, numbered: Names) -> Directory:
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
    key = [LAYOUT, files, classes and sorted(classes), numbered and list(numbered)]
    return unpack_cells(lambda: _cells_of(rows, where), key, storage, where, classes, numbered)


def unpack_cells(
    read: Callable[[], Iterable[Cells]],
    identity: object,
    storage: Directory,
    where: str,
    classes: Names,
    numbered: Names,
) -> Directory:
    """As `unpack`, of what `read()` gives, which is the same whenever `identity` is."""
    key, unpacked = fingerprint(identity), storage / "unpacked"
    if unpacked.exists(f"{key}.complete"):
        return unpacked / key
    with exclusive(unpacked / key):
        if unpacked.exists(f"{key}.complete"):
            return unpacked / key
        written, shown = 0, progress.bar("unpack", None, "images", delay=progress.BAR_DELAY_S)
        names: Names = None
        with shown, ThreadPoolExecutor(WRITERS) as pool:
            for images, names in _images(read(), where, classes, numbered):  # noqa: B007 of all the same
                for _ in pool.map((unpacked / key).write, images, images.values()):
                    shown.update()
                written += len(images)
        if not written:
            raise InputError(
                f"{where} has no rows{' of the classes that data.classes names' if classes else ''}; "
                "give images"
            )
        unpacked.write(f"{key}.complete", json.dumps(list(names)).encode() if names else b"")
    return unpacked / key


def numbering(folder: Directory) -> tuple[str, ...] | None:
    """What integers count, in the rows that were unpacked into `folder`; None where they name no class."""
    head, _, key = folder.path.rpartition("/")
    noted = Directory(folder.filesystem, head).read(f"{key}.complete")
    return tuple(json.loads(noted)) if noted else None


def _place(directory: Directory, path: str) -> str:
    """Where a file lies: on a disk one place, whatever links lead to it."""
    return str(Path(path).resolve()) if directory.is_local else f"{directory.filesystem.type_name}://{path}"


def _images(
    cells: Iterable[Cells], where: str, classes: Names, numbered: Names
) -> Iterator[tuple[dict[str, bytes], Names]]:
    """{path in the class folders: encoded image} of some rows at a time, and what integers count there."""
    row = 0
    for labels, images, names in cells:
        kept = {}
        for label, image in zip(labels, images, strict=True):
            at = f"{where} row {row}"
            cls = _class_name(label, names or numbered, at)
            if classes is None or cls in classes:
                kept[f"{_folder(cls, at)}/row-{row:07d}"] = _encoded(image, at)
            row += 1
        yield kept, names or numbered


def _cells_of(rows: Rows, where: str) -> Iterator[Cells]:
    kind = "Parquet" if rows.is_parquet else "Arrow stream"
    for path in rows.files:
        with _at_hand(rows, path) as file:
            name = path.rsplit("/", 1)[-1]
            with reading(f"{where} is no readable {kind}: {name}", "write it anew"):
                yield from _own_cells(file, where) if rows.is_product else cells(_opened(file, where), where)


@contextlib.contextmanager
def _at_hand(rows: Rows, path: str) -> Iterator[Path]:
    """The file under a plain name on this machine, in a folder of its own; out of a bucket it is copied."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("rows.parquet" if rows.is_parquet else "rows.arrow")
        if rows.directory.is_local:
            file.symlink_to(os.path.abspath(path))
        else:
            file.write_bytes(rows.directory.read_path(path))
        yield file


def cells(data: "Dataset | IterableDataset", where: str) -> Iterator[Cells]:
    """Of a data set's rows, some at a time."""
    features = data.features
    assert features is not None, "files of all kinds hold their schema"
    image, column = _columns(features.arrow_schema, where)
    names = getattr(features[column], "names", None)
    for table in cast(
        Iterator[pa.Table], data.select_columns([column, image]).with_format("arrow").iter(ROWS)
    ):
        yield _values(table, column), _values(table, image), names


def _own_cells(file: Path, where: str) -> Iterator[Cells]:
    """Of the product, without the library, which is an extra."""
    with pq.ParquetFile(file) as product:
        image, column = _columns(product.schema_arrow, where)
        names = label_names(product.schema_arrow)
        for batch in product.iter_batches(ROWS, columns=[column, image]):
            yield _values(batch, column), _values(batch, image), names


def _values(table: pa.Table | pa.RecordBatch, name: str) -> list:
    column = table[name]
    column.validate(full=True)  # else offsets that lead out of a broken file would be followed
    return column.to_pylist()


@contextlib.contextmanager
def reading(trouble: str, remedy: str) -> Iterator[None]:
    """Within the block, what a library raises that can't read files is an InputError."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{trouble}: {why}; {remedy}") from error


def hf_datasets(where: str) -> ModuleType:
    """The library, which is an extra and heavy; InputError, which begins with `where`, without it."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f'{where} is read by Hugging Face datasets, which is missing; pip install "ims3-ray[hf]"'
        ) from error
    return datasets


def _opened(file: Path, where: str) -> "Dataset | IterableDataset":
    datasets = hf_datasets(where)
    if file.suffix == ".arrow":
        return datasets.Dataset.from_file(str(file))
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # what it logs, it raises
    place, cache = str(file), str(file.parent)
    return datasets.load_dataset(
        "parquet", data_files=place, cache_dir=cache, split="train", streaming=True, batch_size=ROWS
    )


def _columns(schema: pa.Schema, where: str) -> tuple[str, str]:
    """The names of the image and the class column, after a look at what they hold."""
    known = IMAGE_COLUMNS, CLASS_COLUMNS
    image, column = (next((name for name in names if name in schema.names), "") for names in known)
    if missing := [names[0] for names, name in zip(known, (image, column), strict=True) if not name]:
        raise InputError(
            f"{where} has no column {', '.join(missing)}; it holds {', '.join(schema.names)}; rename yours"
        )
    cell, label = schema.field(image).type, schema.field(column).type
    is_struct = pa.types.is_struct(cell) and cell.get_field_index("bytes") >= 0
    encoded = cell.field("bytes").type if is_struct else cell
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise InputError(
            f"{where}: column {image} holds {cell}; "
            "it must hold encoded images: binary, or struct {bytes, path}"
        )
    if not (pa.types.is_integer(label) or pa.types.is_string(label) or pa.types.is_large_string(label)):
        raise InputError(f"{where}: column {column} holds {label}; it must hold integers or strings")
    return image, column


def _class_name(label: int | str | None, names: Names, at: str) -> str:
    remedy = "leave such rows out, or give a split that has labels"
    if label is None:
        raise InputError(f"{at} has no label; {remedy}")
    if isinstance(label, int) and label < 0:
        raise InputError(f"{at} has label {label}, which stands for none; {remedy}")
    if isinstance(label, int) and label > MOST_LABEL:
        raise InputError(f"{at} has label {label}, beyond any number of a class; {remedy}")
    if isinstance(label, str) or not names:
        return str(label)
    if label >= len(names):
        raise InputError(
            f"{at} has label {label}, but there are {len(names)} classes; give 0 … {len(names) - 1}"
        )
    return names[label]


def _folder(cls: str, at: str) -> str:
    if not is_folder_name(cls):
        raise InputError(f"{at} has class {cls!r}, which can't be a folder's name; rename it")
    return cls


def _encoded(image: dict[str, bytes | str | None] | bytes | None, at: str) -> bytes:
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes) or not data:
        named = ", but names a file" if isinstance(image, dict) and image.get("path") else ""
        raise InputError(
            f"{at} holds no image bytes{named}; write the set with its images embedded, as save_to_disk does"
        )
    return data
