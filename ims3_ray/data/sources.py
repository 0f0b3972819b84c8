"""Finds and reads data sets in rows: an encoded image and a class per row.

    NAME.parquet, or a folder of such files, or its `data`; train-00000-of-00002.parquet names the split
    a folder that `save_to_disk` of a Dataset or DatasetDict of Hugging Face wrote
    a distilled set of this project: its class folders in `train`, or its Parquet file if it was pushed

    image or img                         struct {bytes, path} or binary: an encoded image
    label, class, labels or fine_label   integer, named by the set's ClassLabel if it has one; or a string

pyarrow reads Parquet, `datasets` reads saved sets. Nothing in a row is decoded, downloaded or run.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import MANIFEST, Directory, read_manifest

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIX = ".parquet"
PARQUET = "data/train-00000-of-00001.parquet"  # of a distilled set
FACTOR = "packing_factor"  # key in the statement, the card's front matter and the Parquet file's info
STATEMENT = "distilled.json"  # of a distilled set: how to unpack it, and whether its images are real
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # of a Dataset, of a DatasetDict
VALIDATION = ("validation", "valid", "val")
SPLITS = {  # field → names of its split; the first that is present counts
    "data.train": ("train",),
    "data.validation": VALIDATION,
    "data.test": ("test", *VALIDATION),
}
SPLIT_FILE = re.compile(
    r"(?:(?:.*?[-_.])?(train|test|validation|valid|val)(?:[-_.].*)?|(\w+)-\d+-of-\d+(?:-\w+)?)\.parquet"
)
IMAGE_COLUMNS = ("image", "img")  # the first that is present counts
CLASS_COLUMNS = ("label", "class", "labels", "fine_label")
ROWS = 256  # unpacked at a time: a few hundred MB of large photographs
ClassNames = Sequence[str] | None
Batch = tuple[list, list, ClassNames]  # labels, images, names of integer labels
Split = TypeVar("Split")


@dataclass(frozen=True)
class Rows:
    """Files of rows with an image and a class: Parquet files, or all files of a saved Dataset."""

    directory: Directory
    files: tuple[str, ...]  # full paths, in the order of the rows
    is_parquet: bool


def find_packed(directory: Directory) -> Directory | None:
    """Returns the packed distilled set at a place, or around its `train` or `data`; None if there is none."""
    head, _, name = directory.path.rstrip("/").rpartition("/")
    if directory.path.endswith(f"/{PARQUET}"):
        head, name = directory.path.removesuffix(f"/{PARQUET}"), "data"
    around = [Directory(directory.filesystem, head)] if name in ("train", "data") and head else []
    return next((place for place in (directory, *around) if place.exists(STATEMENT)), None)


def find_set(directory: Directory, name: str, classes: ClassNames) -> Directory | Rows:
    """Returns the class folders or the rows at the place that the field `name` gives.

    If there are several splits, data.train, data.validation and data.test select theirs; any other field
    needs a single split. A folder with a folder of `classes` is not searched for rows. Raises InputError for
    a file that is not Parquet and for a missing split.
    """
    where = f"{name}: {directory.uri}"
    if directory.kind == fs.FileType.File:
        if not directory.path.endswith(SUFFIX):
            raise InputError(f"{where} is no {SUFFIX} file; give one, or a folder with one folder per class")
        return Rows(directory, (directory.path,), is_parquet=True)
    if classes and any(directory.has_directory(cls) for cls in classes):
        return directory
    if _is_product(directory):
        read_manifest(directory)  # raises if a file is missing
        if directory.has_directory("train"):
            return _select_split({"train": directory / "train"}, where)
    if _is_saved(directory):
        if directory.exists(SAVED_SPLITS):
            directory = _select_split({name: directory / name for name in _entries(directory)[1]}, where)
        return Rows(directory, tuple(f"{directory.path}/{name}" for name in directory.files()), False)
    files = _parquet_files(directory)
    by_split: dict[str, list[str]] = {}
    for path in files:
        if match := SPLIT_FILE.fullmatch(path.rsplit("/", 1)[-1]):
            by_split.setdefault(match[1] or match[2], []).append(path)
    files = _select_split(by_split, where) if by_split else files
    return Rows(directory, tuple(files), is_parquet=True) if files else directory


def is_rows(directory: Directory) -> bool:
    """Returns True if the place holds rows, not class folders."""
    if directory.kind == fs.FileType.File:
        return True
    return not _is_product(directory) and (_is_saved(directory) or bool(_parquet_files(directory)))


def is_tensors(location: str) -> bool:
    """Returns True if `location` names a torch file of tensors."""
    return location.partition("?")[0].endswith(".pt")


def label_names(schema: pa.Schema, column: str = "label") -> list[str] | None:
    """Returns the names of integer labels that `datasets` writes into a Parquet schema; None if there are
    none.

    Raises LookupError, TypeError or ValueError if the schema's metadata is damaged.
    """
    info = _info(schema)
    names = info["features"][column].get("names") if info else None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("its labels have no names")
    return names


def _info(schema: pa.Schema) -> dict[str, Any]:
    """Returns what `datasets` states in a Parquet schema; raises as `label_names` does."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return metadata["info"] if metadata else {}


def _is_product(directory: Directory) -> bool:
    return directory.exists(MANIFEST) and directory.exists(PARQUET)


def _is_saved(directory: Directory) -> bool:
    return directory.exists(SAVED_SPLITS) or directory.exists(SAVED)


def _select_split(splits: Mapping[str, Split], where: str) -> Split:
    names = SPLITS.get(where.partition(":")[0]) or (tuple(splits) if len(splits) == 1 else ())
    for name in names:
        if name in splits:
            return splits[name]
    missing = f"and not {' or '.join(map(repr, names))}" if names else "and any of them could be meant"
    raise InputError(
        f"{where} holds the splits {first_few(sorted(splits)) or 'none'}, {missing}; "
        "name one file, or the folder of one split"
    )


def _parquet_files(directory: Directory) -> list[str]:
    """Returns full paths of Parquet files in a folder or its `data`; none if there are class folders."""
    names, folders = _entries(directory)
    files = [f"{directory.path}/{name}" for name in names if name.endswith(SUFFIX)]
    if files and len(folders - {"data"}) < 2:
        return files
    data = directory / "data"
    return [f"{data.path}/{n}" for n in _entries(data)[0] if n.endswith(SUFFIX)] if "data" in folders else []


def _entries(directory: Directory) -> tuple[list[str], set[str]]:
    """Returns the names of the files and of the folders in the directory, without hidden ones."""
    if directory.is_local:  # pyarrow raises for a name that is not UTF-8
        entries = os.scandir(directory.path) if os.path.isdir(directory.path) else ()
        kinds = {entry.name: entry.is_dir() for entry in entries}
    else:
        selector = fs.FileSelector(directory.path, allow_not_found=True)
        infos = directory.with_retries(lambda: directory.filesystem.get_file_info(selector))
        kinds = {info.base_name: info.type == fs.FileType.Directory for info in infos}
    folders = {name for name, is_folder in kinds.items() if is_folder and not name.startswith(".")}
    return sorted(name for name in kinds if name not in folders and not name.startswith(".")), folders


def read_rows(rows: Rows, where: str, factor: int = 1) -> Iterator[Batch]:
    """Yields the rows, not decoded. Raises InputError, prefixed with `where`, if they can't be read.

    So does a Parquet file that states another packing factor than `factor`.
    """
    if not rows.is_parquet:
        yield from _read_saved(rows, where)
        return
    for path in rows.files:
        source = path if rows.directory.is_local else pa.BufferReader(rows.directory.read_path(path))
        name = path.rsplit("/", 1)[-1]
        with (
            convert_errors(f"{where} is no readable Parquet: {name}", "write it anew"),
            pq.ParquetFile(source) as file,
        ):
            image, column = _columns(file.schema_arrow, where)
            names = label_names(file.schema_arrow, column)
            if (stated := _info(file.schema_arrow).get(FACTOR, 1)) != factor:
                raise InputError(
                    f"{where}: {name} states {FACTOR} {stated}, and {STATEMENT} beside it does not; "
                    "give the set's whole folder"
                )
            for batch in file.iter_batches(ROWS, columns=[column, image]):
                yield _values(batch, column), _values(batch, image), names


def _read_saved(rows: Rows, where: str) -> Iterator[Batch]:
    datasets = import_datasets(where)
    with (
        _local_folder(rows) as folder,
        convert_errors(f"{where} can't be read", "copy or save all of it anew"),
    ):
        data = datasets.load_from_disk(folder, keep_in_memory=False)
        paths = [os.path.abspath(file["filename"]) for file in data.cache_files]
        if outside := [path for path in paths if os.path.dirname(path) != folder]:
            raise InputError(f"{where} names the file {outside[0]}, which is not in it; save the set anew")
        yield from read_batches(data, where)


@contextlib.contextmanager
def _local_folder(rows: Rows) -> Iterator[str]:
    """Yields the folder of a saved set; one in a bucket is copied."""
    if rows.directory.is_local:
        yield os.path.abspath(rows.directory.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in rows.files:
            Path(folder, path.rsplit("/", 1)[-1]).write_bytes(rows.directory.read_path(path))
        yield folder


def read_batches(data: "Dataset", where: str) -> Iterator[Batch]:
    """Yields the rows of a Dataset of Hugging Face, not decoded."""
    image, column = _columns(data.features.arrow_schema, where)
    names = getattr(data.features[column], "names", None)
    tables = data.select_columns([column, image]).with_format("arrow").iter(ROWS)
    for table in cast(Iterator[pa.Table], tables):
        yield _values(table, column), _values(table, image), names


def _values(table: pa.Table | pa.RecordBatch, name: str) -> list:
    column = table[name]
    column.validate(full=True)  # offsets of a damaged file may lead beyond it
    return column.to_pylist()


@contextlib.contextmanager
def convert_errors(problem: str, remedy: str) -> Iterator[None]:
    """Raise InputError for every error of a library that can't read files."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{problem}: {why}; {remedy}") from error


def import_datasets(where: str) -> ModuleType:
    """Returns the library `datasets`, an extra that is slow to import. Raises InputError without it."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f'{where} is read by Hugging Face datasets, which is missing; pip install "ims3-ray[hf]"'
        ) from error
    return datasets


def _columns(schema: pa.Schema, where: str) -> tuple[str, str]:
    """Returns the names of the image and the class column after a check of their types."""
    choices = IMAGE_COLUMNS, CLASS_COLUMNS
    image, column = (next((name for name in names if name in schema.names), "") for names in choices)
    if missing := [names[0] for names, name in zip(choices, (image, column), strict=True) if not name]:
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
    label = label.value_type if pa.types.is_dictionary(label) else label
    if not (pa.types.is_integer(label) or pa.types.is_string(label) or pa.types.is_large_string(label)):
        raise InputError(f"{where}: column {column} holds {label}; it must hold integers or strings")
    return image, column
