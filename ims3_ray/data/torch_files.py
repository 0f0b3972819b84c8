"""Image sets in a torch file: tensors of images and integer labels, as published distillation code saves
them.

    res_DC_FashionMNIST_ConvNet_10ipc.pt      {"data": [[images, labels], …]}; only the first pair is read
    images_best.pt                            images; the labels are in labels_best.pt beside it
    any.pt                                    (images, labels), or {"images": …, "labels": …}

Images are (N, C, H, W) with 1 or 3 channels: bytes, or values in 0 … 1. Normalised images, the usual case,
need their mean and deviation in the query: `res.pt?mean=0.2861&deviation=0.3530`. Values are rounded to 8
bits and clipped to the range of pixels.
"""

import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, open_directory

from .sources import ROWS, Batch, ClassNames
from .transforms import png_of
from .unpacking import unpack_batches

MAX_CLIPPED = 0.01  # share of values outside of the range, above which a warning is logged
# NumPy scalars, in which the files hold accuracies
SAFE: list[Any] = [np.float64(0).__reduce__()[0], np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8"))]
_logger = logging.getLogger(__name__)


def unpack_tensors(
    location: str, storage: Directory, name: str, classes: ClassNames, label_names: ClassNames
) -> Directory:
    """Returns class folders below `storage`. Labels count `label_names`; without, the number is the class.

    `classes` filters the images. Raises InputError, with `name`, for a file of another kind or with more than
    plain tensors.
    """
    path, _, query = location.partition("?")
    where, file = f"{name}: {path}", open_directory(path)
    infos = file.infos([file.path] + ([beside.path] if (beside := _beside(file)) else []))
    stats = [value for info in infos for value in (info.size, info.mtime_ns)]
    names = [classes and sorted(classes), label_names and list(label_names)]
    identity = ["tensors", file.uri, *stats, query, *names]
    read = lambda: _read_batches(file, dict(parse_qsl(query)), where)  # noqa: E731
    return unpack_batches(read, identity, storage, where, classes, label_names)


def _read_batches(file: Directory, options: Mapping[str, str], where: str) -> Iterator[Batch]:
    images, labels = _images_and_labels(file, where)
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise InputError(f"{where} holds no images (N, 1 or 3, H, W); save a tensor of that shape")
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"{where}: has no integer label per image; save labels of the shape ({len(images)},)"
        )
    pixels = _pixels(images, options, where).permute(0, 2, 3, 1).numpy()
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    for first in range(0, len(pixels), ROWS):
        batch = pixels[first : first + ROWS]
        yield labels[first : first + ROWS].tolist(), [png_of(Image.fromarray(image)) for image in batch], None


def _images_and_labels(file: Directory, where: str) -> tuple[object, object]:
    content = _read(file, where)
    if isinstance(content, Tensor):
        if not (beside := _beside(file)):
            raise InputError(f"{where} holds only images; save (images, labels)")
        return content, _read(beside, where)
    if isinstance(content, dict):
        content = content["data"] if "data" in content else [content.get("images"), content.get("labels")]
    if isinstance(content, list | tuple) and content and isinstance(content[0], list | tuple):
        content = content[0]  # the first of several experiments
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise InputError(f"{where} holds no (images, labels); save the two tensors")
    return content[0], content[1]


def _beside(file: Directory) -> Directory | None:
    """Returns the file of labels beside a local file of images."""
    head, slash, name = file.path.rpartition("/")
    beside = open_directory(f"{head}{slash}{name.replace('images', 'labels')}") if file.is_local else file
    return beside if beside.path != file.path and Path(beside.path).is_file() else None


def _read(file: Directory, where: str) -> Any:
    """Returns the content of the file. Only tensors and numbers are accepted: no code in it runs."""
    try:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(io.BytesIO(file.read_path(file.path)), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{where}: {file.uri} is not there; name an existing file") from error
    except Exception as error:  # a pickle of other objects may raise anything
        why = " ".join(str(error).split())[:120]
        raise InputError(f"{where} is no torch file of plain tensors ({why}); save only tensors") from error


def _pixels(images: Tensor, options: Mapping[str, str], where: str) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    values = images.detach().double()
    try:
        mean, deviation = (
            torch.tensor([float(v) for v in options[name].split(",")], dtype=torch.float64).view(1, -1, 1, 1)
            for name in ("mean", "deviation")
        )
        if {mean.shape[1], deviation.shape[1]} - {1, images.shape[1]}:
            raise ValueError(f"there are {images.shape[1]} channels")
        values = values * deviation + mean
    except KeyError as error:
        low, high = float(values.min()), float(values.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise InputError(
                f"{where}: has values from {low:.3g} to {high:.3g}; give their normalisation, as in "
                f"{where.rpartition(' ')[2]}?mean=0.2861&deviation=0.3530"
            ) from error
    except ValueError as error:
        raise InputError(
            f"{where}: mean and deviation are one number, or one per channel ({error})"
        ) from error
    if not bool(values.isfinite().all()):
        raise InputError(f"{where}: has values that are not finite; save the set anew")
    outside = float(((values < 0) | (values > 1)).double().mean())
    if outside > MAX_CLIPPED:
        _logger.warning("%s: %.0f %% of the values are out of range and clipped", where, 100 * outside)
    return (values * 255).round().clamp(0, 255).to(torch.uint8)
