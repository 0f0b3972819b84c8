"""Sets as the field's code saves them: tensors of images and integer labels in a torch file.

    res_DC_FashionMNIST_ConvNet_10ipc.pt      {"data": [[images, labels], …]}, of which the first counts
    images_best.pt                            images alone, the labels in labels_best.pt beside it
    any.pt                                    (images, labels), or {"images": …, "labels": …}

Images are (N, C, H, W) of 1 or 3 channels: bytes, or values of 0 … 1. Normalised ones, as most are saved,
need what they were normalised by, after a question mark: `res.pt?mean=0.2861&deviation=0.3530`. They become
pixels: rounded to 8 bits, and cut where no pixel holds them.
"""

import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, open_directory

from .transforms import png_of
from .unpacking import ROWS, Cells, Names, unpack_cells

CUT = 0.01  # share of values that no pixel holds, from which on it is told
# NumPy's numbers, which accuracies are saved as
SAFE: list[Any] = [np.float64(0).__reduce__()[0], np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8"))]
_logger = logging.getLogger(__name__)


def unpack_tensors(location: str, storage: Directory, name: str, numbered: Names) -> Directory:
    """Class folders below `storage`, of the classes `numbered` that labels count, or called by their numbers.

    InputError, with `name`, for a file of another kind, and one that holds more than plain tensors.
    """
    path, _, query = location.partition("?")
    where, file = f"{name}: {path}", open_directory(path)
    (info,) = file.infos([file.path])
    identity = ["tensors", file.uri, info.size, info.mtime_ns, query, numbered and list(numbered)]
    read = lambda: _cells(file, dict(parse_qsl(query)), where)  # noqa: E731
    return unpack_cells(read, identity, storage, where, None, numbered)


def _cells(file: Directory, options: Mapping[str, str], where: str) -> Iterator[Cells]:
    images, labels = _images_and_labels(file, where)
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"{where} holds no images (N, 1 or 3, H, W); save a tensor of that shape")
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
        raise InputError(f"{where}: has no integer label an image; save labels of the shape ({len(images)},)")
    pixels = _pixels(images, options, where).permute(0, 2, 3, 1).numpy()
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    for first in range(0, len(pixels), ROWS):
        some = pixels[first : first + ROWS]
        yield labels[first : first + ROWS].tolist(), [png_of(Image.fromarray(image)) for image in some], None


def _images_and_labels(file: Directory, where: str) -> tuple[object, object]:
    held = _read(file, where)
    if isinstance(held, Tensor):
        head, slash, name = file.path.rpartition("/")
        beside = open_directory(f"{head}{slash}{name.replace('images', 'labels')}")
        if beside.path == file.path or not file.is_local:
            raise InputError(f"{where} holds images alone; save (images, labels)")
        return held, _read(beside, where)
    if isinstance(held, dict):
        held = held["data"] if "data" in held else [held.get("images"), held.get("labels")]
    if isinstance(held, list | tuple) and held and isinstance(held[0], list | tuple):
        held = held[0]  # of several experiments
    if not isinstance(held, list | tuple) or len(held) != 2:
        raise InputError(f"{where} holds no (images, labels); save the two tensors")
    return held[0], held[1]


def _read(file: Directory, where: str) -> Any:
    """What the file holds, of plain tensors and numbers alone: nothing in it is run."""
    try:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(io.BytesIO(file.read_path(file.path)), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{where}: {file.uri} is not there; name a file that is") from error
    except Exception as error:  # whatever a pickle of other things raises
        why = " ".join(str(error).split())[:120]
        raise InputError(f"{where} is no torch file of plain tensors ({why}); save tensors alone") from error


def _pixels(images: Tensor, options: Mapping[str, str], where: str) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    values = images.detach().double()
    try:
        mean, deviation = (
            torch.tensor([float(v) for v in options[name].split(",")], dtype=torch.float64).view(1, -1, 1, 1)
            for name in ("mean", "deviation")
        )
        values = values * deviation + mean
    except KeyError as error:
        low, high = float(values.min()), float(values.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise InputError(
                f"{where}: has values from {low:.3g} to {high:.3g}; say what they were normalised by, as in "
                f"{where.rpartition(' ')[2]}?mean=0.2861&deviation=0.3530"
            ) from error
    except ValueError as error:
        raise InputError(f"{where}: mean and deviation are a number, or one a channel ({error})") from error
    if not bool(values.isfinite().all()):
        raise InputError(f"{where}: has values that are not finite; save the set anew")
    outside = float(((values < 0) | (values > 1)).double().mean())
    if outside > CUT:
        _logger.warning(
            "%s: %.0f %% of the values lie outside what pixels hold, and are cut", where, 100 * outside
        )
    return (values * 255).round().clamp(0, 255).to(torch.uint8)
