"""Where a labelled image set lies: class folders, or files of rows as Hugging Face `datasets` writes them.

NAME.parquet; a folder, or its `data`, with *.parquet        Parquet; names such as
train-00000-of-00002.parquet say the split a folder with state.json
`Dataset.save_to_disk`: the Arrow streams that it names a folder with dataset_dict.json
`DatasetDict.save_to_disk`: such a folder a split a folder with manifest.json and data/train-….parquet
the product of this project: the class folders of its `train`
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import MANIFEST, Directory
from ims3_ray.text import some

from .distilled import PARQUET, is_folder_name

SUFFIX = ".parquet"
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
OF_VALIDATION = ("validation", "valid", "val")
# the first that is there
WANTED = {"train": ("train",), "validation": OF_VALIDATION, "test": ("test", *OF_VALIDATION)}
SPLIT_FILE = re.compile(r"(?:(\w+)-\d+-of-\d+(?:-\w+)?|(train|test|validation|valid|val)(?:-.*)?)\.parquet")


@dataclass(frozen=True)
class Rows:
    """Files of rows with an encoded image and its class."""

    directory: Directory  # on whose filesystem they lie
    files: tuple[str, ...]  # full paths, in the order of the rows
    is_parquet: bool  # else Arrow streams


def find_set(
    directory: Directory, name: str, split: str | None, classes: Sequence[str] | None = None
) -> Directory | Rows:
    """The class folders or the files of rows at the place that `directory` stands for.

    Of several splits the one for `split` ("train", "validation", "test"); where it is None there must be one
    alone. A folder that holds a folder of `classes` is not searched for anything else. InputError, with
    `name`, for a file that is no Parquet, for splits among which the wished one is not, and for a saved set
    that can't be read or names files elsewhere.
    """
    if directory.kind == fs.FileType.File:
        if not directory.path.endswith(SUFFIX):
            raise InputError(
                f"{name}: {directory.uri} is no {SUFFIX} file; give one, or a folder with one folder a class"
            )
        return Rows(directory, (directory.path,), is_parquet=True)
    if classes and any(directory.has_directory(cls) for cls in classes):
        return directory
    if directory.exists(MANIFEST) and directory.exists(PARQUET):
        return _wanted({"train": directory / "train"}, name, split, directory)
    if directory.exists(SAVED_SPLITS):
        splits = _names(_read(directory, SAVED_SPLITS, name).get("splits"), directory, SAVED_SPLITS, name)
        return _saved(
            _wanted({of_split: directory / of_split for of_split in splits}, name, split, directory), name
        )
    if directory.exists(SAVED):
        return _saved(directory, name)
    files = _parquet(directory)
    by_split: dict[str, list[str]] = {}
    for path in files:
        if found := SPLIT_FILE.fullmatch(path.rsplit("/", 1)[-1]):
            by_split.setdefault(found[1] or found[2], []).append(path)
    chosen = _wanted(by_split, name, split, directory) if by_split else files
    return Rows(directory, tuple(chosen), is_parquet=True) if chosen else directory


def is_of_rows(directory: Directory) -> bool:
    """Whether what lies there is files of rows, whatever they hold."""
    if directory.kind == fs.FileType.File:
        return True
    is_product = directory.exists(MANIFEST) and directory.exists(PARQUET)
    return not is_product and (
        directory.exists(SAVED_SPLITS) or directory.exists(SAVED) or bool(_parquet(directory))
    )


def _wanted(splits: Mapping[str, Any], name: str, split: str | None, directory: Directory) -> Any:
    """What stands for the split that is wished for."""
    wanted = WANTED[split] if split else tuple(splits) if len(splits) == 1 else ()
    for of_split in wanted:
        if of_split in splits:
            return splits[of_split]
    wish = f"and not {' or '.join(map(repr, wanted))}" if wanted else "of which any could be meant"
    raise InputError(
        f"{name}: {directory.uri} holds the splits {some(sorted(splits))}, {wish}; name one file, or the folder of one split"
    )


def _saved(directory: Directory, name: str) -> Rows:
    """The Arrow streams that a saved set names."""
    state = _read(directory, SAVED, name)
    if any(value for key, value in state.items() if key.startswith("_indices")):
        raise InputError(
            f"{name}: {directory.uri} keeps the order of its rows apart, as old versions did; save it anew"
        )
    entries = state.get("_data_files")
    named = [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries or []]
    files = [f"{directory.path}/{file}" for file in _names(named, directory, SAVED, name)]
    if missing := [info.base_name for info in directory.infos(files) if info.type != fs.FileType.File]:
        raise InputError(
            f"{name}: {directory.uri} lacks the files {some(missing)} that its {SAVED} names; copy all of it"
        )
    return Rows(directory, tuple(files), is_parquet=False)


def _read(directory: Directory, file: str, name: str) -> dict[str, Any]:
    try:
        document = directory.read_json(file)
    except FileNotFoundError as error:
        raise InputError(
            f"{name}: {directory.uri} lacks its {file}; copy all of it, or save it anew"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{name}: {directory.uri}/{file} is no JSON ({error}); save the set anew") from error
    if not isinstance(document, dict):
        raise InputError(
            f"{name}: {directory.uri}/{file} holds a {type(document).__name__}; save the set anew"
        )
    return document


def _names(found: Any, directory: Directory, file: str, name: str) -> list[str]:
    """Names of entries of the folder itself. InputError for paths, and where there are none."""
    if not isinstance(found, list) or not found:
        raise InputError(f"{name}: {directory.uri}/{file} names no files; save the set anew")
    for entry in found:
        if not isinstance(entry, str) or not is_folder_name(entry):
            raise InputError(
                f"{name}: {directory.uri}/{file} names {entry!r}, which is no name in that folder; save the set anew"
            )
    return found


def _parquet(directory: Directory) -> list[str]:
    """Full paths of the Parquet files of a folder, or of its `data`; none beside class folders."""
    files, folders = _entries(directory)
    found = [file for file in files if file.endswith(SUFFIX)]
    if found and len(folders - {"data"}) < 2:
        return [f"{directory.path}/{file}" for file in found]
    if "data" in folders:
        data = directory / "data"
        return [f"{data.path}/{file}" for file in _entries(data)[0] if file.endswith(SUFFIX)]
    return []


def _entries(directory: Directory) -> tuple[list[str], set[str]]:
    """(files, folders) of the folder itself that are not hidden, by name."""
    if directory.is_local:  # as listing.py lists: pyarrow raises on a name that is no UTF-8
        if not os.path.isdir(directory.path):
            return [], set()
        found = {entry.name: entry.is_dir() for entry in os.scandir(directory.path)}
    else:
        selector = fs.FileSelector(directory.path, allow_not_found=True)
        there = directory.patiently(lambda: directory.filesystem.get_file_info(selector))
        found = {info.base_name: info.type == fs.FileType.Directory for info in there}
    visible = {name: is_folder for name, is_folder in found.items() if not name.startswith(".")}
    files = sorted(name for name, is_folder in visible.items() if not is_folder)
    return files, {name for name, is_folder in visible.items() if is_folder}
