"""Where a labelled image set lies: class folders, or a data set as Hugging Face `datasets` leaves it.

NAME.parquet, or a folder or its `data` of such; a name like train-00000-of-00002.parquet says the split
a folder with state.json: `Dataset.save_to_disk`; with dataset_dict.json: a folder of that kind a split
a folder with manifest.json and data/train-….parquet: the product of this project, class folders in `train`;
one that was pushed has none
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import MANIFEST, Directory, read_manifest

from .classes import is_folder_name

SUFFIX = ".parquet"
PARQUET = "data/train-00000-of-00001.parquet"  # of the product
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
OF_VALIDATION = ("validation", "valid", "val")
WANTED = {  # the first that is there
    "data.train": ("train",),
    "data.validation": OF_VALIDATION,
    "data.test": ("test", *OF_VALIDATION),
}
SPLIT_FILE = re.compile(r"(?:(\w+)-\d+-of-\d+(?:-\w+)?|(train|test|validation|valid|val)(?:-.*)?)\.parquet")
Source = TypeVar("Source")


@dataclass(frozen=True)
class Rows:
    """Files of rows with an encoded image and its class."""

    directory: Directory  # on whose filesystem they lie
    files: tuple[str, ...]  # full paths, in the order of the rows
    is_parquet: bool  # else Arrow streams
    is_product: bool = False  # of this project


def find_set(directory: Directory, name: str, classes: Sequence[str] | None) -> Directory | Rows:
    """The class folders or the files of rows at the place that `directory` stands for, as `name` gives it.

    Of several splits the one for data.train, data.validation or data.test; for another name there must be one
    alone. A folder that holds a folder of `classes` is not searched for anything else. InputError, with
    `name`, for a file that is no Parquet, for splits among which the wished one is not, and for a saved set
    that can't be read or names files elsewhere.
    """
    where = f"{name}: {directory.uri}"
    if directory.kind == fs.FileType.File:
        if not directory.path.endswith(SUFFIX):
            raise InputError(f"{where} is no {SUFFIX} file; give one, or a folder with one folder a class")
        return Rows(directory, (directory.path,), is_parquet=True)
    if classes and any(directory.has_directory(cls) for cls in classes):
        return directory
    is_product = _is_product(directory)
    if is_product:
        read_manifest(directory)  # all of it is there
        if directory.has_directory("train"):
            return _of_split({"train": directory / "train"}, where)
    if directory.exists(SAVED_SPLITS):
        splits = {folder: directory / folder for folder in _entries(directory)[1]}
        return _saved(_of_split(splits, where), name)
    if directory.exists(SAVED):
        return _saved(directory, name)
    files = _parquet(directory)
    by_split: dict[str, list[str]] = {}
    for path in files:
        if match := SPLIT_FILE.fullmatch(path.rsplit("/", 1)[-1]):
            by_split.setdefault(match[1] or match[2], []).append(path)
    files = _of_split(by_split, where) if by_split else files
    return Rows(directory, tuple(files), is_parquet=True, is_product=is_product) if files else directory


def is_tensors(location: str) -> bool:
    """Whether `location` names a torch file of tensors."""
    return location.partition("?")[0].endswith(".pt")


def is_of_rows(directory: Directory) -> bool:
    """Whether what lies there is files of rows, whatever they hold."""
    if directory.kind == fs.FileType.File:
        return True
    saved = directory.exists(SAVED_SPLITS) or directory.exists(SAVED)
    return not _is_product(directory) and (saved or bool(_parquet(directory)))


def label_names(schema: pa.Schema) -> list[str]:
    """What labels count, as `datasets` notes it in a file's schema; LookupError or ValueError without."""
    names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its labels have no names")
    return names


def _is_product(directory: Directory) -> bool:
    return directory.exists(MANIFEST) and directory.exists(PARQUET)


def _of_split(splits: Mapping[str, Source], where: str) -> Source:
    """What stands for the split that is wished for."""
    wanted = WANTED.get(where.partition(":")[0]) or (tuple(splits) if len(splits) == 1 else ())
    for known in wanted:
        if known in splits:
            return splits[known]
    wish = f"and not {' or '.join(map(repr, wanted))}" if wanted else "of which any could be meant"
    raise InputError(
        f"{where} holds the splits {first_few(sorted(splits)) or 'none'}, {wish}; "
        "name one file, or the folder of one split"
    )


def _saved(directory: Directory, name: str) -> Rows:
    """The Arrow streams that a saved set names, which lie in its own folder."""
    where = f"{name}: {directory.uri}"
    try:
        state = directory.read_json(SAVED)
        entries = [entry["filename"] for entry in state["_data_files"]]
        has_order = any(value for key, value in state.items() if key.startswith("_indices"))
    except FileNotFoundError as error:
        raise InputError(f"{where} lacks its {SAVED}; copy all of it, or save it anew") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}/{SAVED} names no files ({error!r}); save the set anew") from error
    if has_order:
        raise InputError(f"{where} keeps the order of its rows apart, as old versions did; save it anew")
    for entry in entries:
        if not isinstance(entry, str) or not is_folder_name(entry):
            raise InputError(
                f"{where}/{SAVED} names {entry!r}, which is no name in that folder; save the set anew"
            )
    files = [f"{directory.path}/{entry}" for entry in entries]
    if missing := [info.base_name for info in directory.infos(files) if info.type != fs.FileType.File]:
        raise InputError(
            f"{where} lacks the files {first_few(missing)} that its {SAVED} names; copy all of it"
        )
    return Rows(directory, tuple(files), is_parquet=False)


def _parquet(directory: Directory) -> list[str]:
    """Full paths of the Parquet files of a folder, or of its `data`; none beside class folders."""
    names, folders = _entries(directory)
    files = [f"{directory.path}/{name}" for name in names if name.endswith(SUFFIX)]
    if files and len(folders - {"data"}) < 2:
        return files
    data = directory / "data"
    return [f"{data.path}/{n}" for n in _entries(data)[0] if n.endswith(SUFFIX)] if "data" in folders else []


def _entries(directory: Directory) -> tuple[list[str], set[str]]:
    """(files, folders) of the folder itself that are not hidden, by name."""
    if directory.is_local:  # as listing.py lists: pyarrow raises on a name that is no UTF-8
        there = os.scandir(directory.path) if os.path.isdir(directory.path) else ()
        kinds = {entry.name: entry.is_dir() for entry in there}
    else:
        selector = fs.FileSelector(directory.path, allow_not_found=True)
        infos = directory.with_retries(lambda: directory.filesystem.get_file_info(selector))
        kinds = {info.base_name: info.type == fs.FileType.Directory for info in infos}
    folders = {name for name, is_folder in kinds.items() if is_folder and not name.startswith(".")}
    return sorted(name for name in kinds if name not in folders and not name.startswith(".")), folders
