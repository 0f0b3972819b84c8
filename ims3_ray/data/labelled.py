"""Anybody's labelled image set: class folders, this project's product, or Parquet as Hugging Face `datasets` writes it.

    image            struct {bytes, path} or binary: an encoded image
    label or class   integer, named by the file's own ClassLabel or else by its place among the known classes; or a string

Parquet is unpacked once into class folders below the storage, so that whatever reads images reads these too.
"""

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.dataset as pads
from pyarrow import fs

from ..artifacts import MANIFEST, Directory, fingerprint, open_directory
from ..errors import InputError
from .classes import some
from .distilled import PARQUET, is_folder_name
from .images import ImageSet, open_images

CLASS_COLUMNS = ("label", "class")
ROWS = 256  # unpacked at a time: a few hundred MB of large photographs
SUFFIX = ".parquet"


def open_labelled(
    location: str, storage: Directory, *, name: str, seed: int, max_bad_fraction: float, known: Sequence[str]
) -> ImageSet:
    """The set at a path or URI, checked as `open_images` checks; `name` is what messages call it.

    `known` are the classes that it shall be scored on, sorted. Raises InputError for Parquet that can't be read as images
    with classes, for a class that is not known, and for a known one that is missing.
    """
    shared = {"name": name, "seed": seed, "max_bad_fraction": max_bad_fraction}
    if location.startswith("package://"):
        images = open_images(location, storage, **shared)
    else:
        directory = open_directory(location)
        files = parquet_files(directory, name)
        if files:
            images = open_images(_unpack(directory, files, storage, name, known).uri, storage, **shared)
        else:
            is_product = directory.exists(MANIFEST) and directory.exists(PARQUET)
            images = open_images((directory / "train" if is_product else directory).uri, storage, **shared)
    _check_classes(images.classes, known, name, location)
    return images


def parquet_files(directory: Directory, name: str) -> list[str]:
    """Full paths of the Parquet files of a set: the file itself, or those of a folder and its `data`; none for class folders.

    InputError for a file that is no Parquet, and for a folder that holds several splits.
    """
    kind = directory.kind
    if kind == fs.FileType.File:
        if not directory.path.endswith(SUFFIX):
            raise InputError(f"{name}: {directory.uri} is no {SUFFIX} file; give one, or a folder with one folder a class")
        return [directory.path]
    if kind == fs.FileType.NotFound or (directory.exists(MANIFEST) and directory.exists(PARQUET)):
        return []
    for place in (directory, directory / "data"):
        selector = fs.FileSelector(place.path, allow_not_found=True)
        listed = place.patiently(lambda selector=selector: directory.filesystem.get_file_info(selector))
        found = sorted(info.path for info in listed if info.type == fs.FileType.File and info.path.endswith(SUFFIX))
        splits = {path.rsplit("/", 1)[-1].removesuffix(SUFFIX).split("-")[0] for path in found}
        if len(splits & {"train", "test", "validation"}) > 1:
            raise InputError(f"{name}: {place.uri} holds the splits {some(sorted(splits))}; name one file")
        if found:
            return found
    return []


def _check_classes(classes: Sequence[str], known: Sequence[str], name: str, location: str) -> None:
    unknown, missing = sorted(set(classes) - set(known)), sorted(set(known) - set(classes))
    if unknown:
        raise InputError(
            f"{name}: {location} has classes that the scored images lack: {some(unknown)}; known: {some(list(known))}; "
            "rename or remove them"
        )
    if missing:
        raise InputError(
            f"{name}: {location} has no image of {len(missing)} classes that the scored images have: {some(missing)}; "
            "add them, or score on fewer classes with data.classes"
        )


def _unpack(directory: Directory, files: list[str], storage: Directory, name: str, known: Sequence[str]) -> Directory:
    """The folder below `storage` that holds the files' images as class folders; written where it is not there yet."""
    infos = directory.patiently(lambda: directory.filesystem.get_file_info(files))
    key = fingerprint([directory.uri, [[i.path, i.size, i.mtime_ns] for i in infos], list(known)])
    unpacked = storage / "unpacked"
    if not unpacked.exists(f"{key}.complete"):
        (unpacked / key).delete()
        for row, (cls, data) in enumerate(_rows(directory, files, name, known)):
            (unpacked / key).write(f"{cls}/row-{row:07d}", data)
        unpacked.write(f"{key}.complete", b"")
    return unpacked / key


def _rows(directory: Directory, files: list[str], name: str, known: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Class name and encoded image of every row."""
    where = f"{name}: {directory.uri}"
    try:
        dataset = directory.patiently(lambda: pads.dataset(files, format="parquet", filesystem=directory.filesystem))
        schema = dataset.schema
        column = _class_column(schema, where)
        names = _class_names(schema, column, known, where)
        row = 0
        for batch in dataset.to_batches(columns=["image", column], batch_size=ROWS):
            labels, images = batch.column(column).to_pylist(), batch.column("image").to_pylist()
            for label, image in zip(labels, images, strict=True):
                data = image.get("bytes") if isinstance(image, dict) else image
                if not data:
                    raise InputError(f"{where} row {row} holds no image bytes; write the set with its images embedded")
                yield _class_name(label, names, f"{where} row {row}"), data
                row += 1
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(f"{where} is no readable Parquet: {' '.join(str(error).split())[:200]}; write it anew") from error
    if not row:
        raise InputError(f"{where} has no rows; give a set with images")


def _class_column(schema: pa.Schema, where: str) -> str:
    """The name of the class column, after a look at what the columns hold."""
    column = next((c for c in CLASS_COLUMNS if c in schema.names), None)
    missing = ([] if "image" in schema.names else ["image"]) + ([] if column else ["label"])
    if missing:
        raise InputError(f"{where} has no column {', '.join(missing)}; it holds {', '.join(schema.names)}; rename yours")
    image, label = schema.field("image").type, schema.field(column).type
    encoded = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise InputError(f"{where}: column image holds {image}; it must hold encoded images: binary, or struct {{bytes, path}}")
    label = label.value_type if pa.types.is_dictionary(label) else label
    if not (pa.types.is_integer(label) or pa.types.is_string(label) or pa.types.is_large_string(label)):
        raise InputError(f"{where}: column {column} holds {label}; it must hold integers or strings")
    return column


def _class_names(schema: pa.Schema, column: str, known: Sequence[str], where: str) -> Sequence[str]:
    """What integers of the class column stand for."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        return list(info.get("features", {}).get(column, {}).get("names") or known)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{where}: its metadata `huggingface` can't be read ({error}); write the set anew") from error


def _class_name(label: int | str | None, names: Sequence[str], where: str) -> str:
    if isinstance(label, int):
        if not 0 <= label < len(names):
            raise InputError(f"{where} has label {label}, but there are {len(names)} classes; give 0 … {len(names) - 1}")
        label = str(names[label])
    if not label or not is_folder_name(label):
        raise InputError(f"{where} has class {label!r}, which can't be a folder's name; rename it")
    return label
