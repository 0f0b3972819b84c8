"""Image sets by name, whose libraries know their files, their splits and what their classes are called.

    torchvision:FashionMNIST              a class of torchvision.datasets, its files below data.root
    torchvision:EMNIST?split=balanced     what follows the question mark is given to that class
    hf:zalando-datasets/fashion_mnist     a data set of the Hugging Face hub, or a folder like one

Unpacked once, like any rows. A slash in a class's name becomes a dash, since it can be in no folder's name.
"""

import difflib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from ims3_ray.config.data import CACHE, HUB, TORCHVISION
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory

from .sources import WANTED
from .transforms import png_of
from .unpacking import ROWS, Cells, Names, cells, hf_datasets, reading, unpack_cells

FIELDS = ("data.train", "data.validation", "data.test")


def is_named(location: str) -> bool:
    """Whether `location` names a set that a library knows, in place of a folder or URI."""
    return location.startswith((TORCHVISION, HUB))


def below(location: str, root: str | None) -> str:
    """The same place; a set of torchvision's with its files below `root`, where that is given."""
    if root is None or not location.startswith(TORCHVISION):
        return location
    return f"{location}{'&' if '?' in location else '?'}{urlencode({'root': root})}"


def unpack_named(location: str, storage: Directory, name: str, classes: Names) -> Directory:
    """Class folders below `storage` of the split that the field `name` (data.train, data.test, …) stands for.

    InputError for a set that the library does not know, a split that it does not have, and files that are
    neither there nor to be had.
    """
    where = f"{name}: {location}"
    spec, _, query = location.partition("?")
    options = dict(parse_qsl(query, strict_parsing=bool(query)))
    split = name if name in FIELDS else FIELDS[0]
    if location.startswith(HUB):
        data = _hub(spec.removeprefix(HUB), split, options, where)
        identity = ["hf", sorted(file["filename"] for file in data.cache_files), len(data)]
        return unpack_cells(lambda: cells(data, where), identity, storage, where, classes, None)
    place = os.path.realpath(os.path.expanduser(options.pop("root", CACHE)))
    kind = _kind(spec.removeprefix(TORCHVISION), where)
    identity = ["torchvision", spec, options, split, place, classes and sorted(classes)]
    read = lambda: _rows(_opened(kind, place, split, options, where), where)  # noqa: E731
    return unpack_cells(read, identity, storage, where, classes, None)


def _hub(path: str, split: str, options: dict[str, str], where: str) -> Any:
    """The rows of the split that is there, by `datasets`' own names and cache."""
    datasets = hf_datasets(where)
    with reading(f"{where} can't be had", "check the name and the network, or name a folder"):
        there = datasets.get_dataset_split_names(path, options.get("name"), revision=options.get("revision"))
        known = [wanted for wanted in WANTED[split] if wanted in there]
        if not known:
            raise InputError(
                f"{where} has the splits {first_few(there, show=str)}, and not {WANTED[split][0]}"
            )
        return datasets.load_dataset(path, split=known[0], **options)


def _kind(kind: str, where: str) -> Any:
    """The class of torchvision.datasets."""
    from torchvision import datasets  # seconds to import

    known = sorted(set(datasets.__all__) - {"FakeData", "ImageFolder", "DatasetFolder"})
    if kind in known:
        return getattr(datasets, kind)
    near = difflib.get_close_matches(kind, known, n=3, cutoff=0.5)
    hint = f"did you mean {first_few(near, show=str)}?" if near else "its documentation lists them"
    raise InputError(f"{where} is no data set of torchvision; {hint}")


def _opened(kind: Any, root: str, split: str, options: dict[str, str], where: str) -> Any:
    """The data set, of the split that a field stands for; downloaded where its files are missing."""
    takes = inspect.signature(kind.__init__).parameters
    base = inspect.signature(kind.__mro__[1].__init__).parameters
    given: dict[str, Any] = {"root": root, **options}
    if "download" in takes or ("kwargs" in takes and "download" in base):
        given["download"] = True
    if "loader" in takes:
        given["loader"] = _bytes  # as they are: photographs as PNG take five times their place
    ways: Sequence[dict[str, Any]] = [{"split": name} for name in _names(split)]
    if "train" in takes or "kwargs" in takes:
        ways = [{"train": split == "data.train"}] if split != "data.validation" else []
    elif "split" in options:
        ways = [{}]
    elif "split" not in takes:
        ways = [{}] if split == "data.train" else []
    refused = ""
    for way in ways:
        try:
            with reading(f"{where} is not below {root} and can't be downloaded", _remedy(kind, root)):
                return kind(**given, **way)
        except InputError as error:
            cause = error.__cause__
            if not (isinstance(cause, ValueError) and "split" in way and "Valid values" in str(cause)):
                raise
            refused = f" ({cause})"
    raise InputError(
        f"{where} has no split for {split}{refused}; name other images, or hold some out: "
        "data.validation_split=0.1 evaluate.protocol=quick-val"
    )


def _names(split: str) -> Sequence[str]:
    """What torchvision calls the split, the first that is there."""
    return ("train", "trainval") if split == "data.train" else WANTED[split]


def _remedy(kind: Any, root: str) -> str:
    """Where its files belong, for those of whose files torchvision tells the names."""
    files = [Path(address).name.removesuffix(".gz") for address, _ in getattr(kind, "resources", ())]
    place = f"{root}/{kind.__name__}/raw" if files else root
    wanted = first_few(files, 4, show=str) if files else "its files"
    return f"put {wanted} into {place} (data.root), or check the network"


def _bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _rows(data: Any, where: str) -> Iterator[Cells]:
    """Encoded images and their classes, some at a time."""
    names = getattr(data, "wnids", None) or getattr(data, "classes", None)  # ImageNet's words are not unique
    folders = [(name if isinstance(name, str) else name[0]).replace("/", "-") for name in names or ()]
    for first in range(0, len(data), ROWS):
        labels, images = [], []
        for row in range(first, min(first + ROWS, len(data))):
            image, label = data[row]
            if not isinstance(label, int):
                raise InputError(f"{where} labels no classes, but {type(label).__name__}; name another set")
            labels.append(label)
            images.append(image if isinstance(image, bytes) else png_of(image))
        yield labels, images, folders or None
