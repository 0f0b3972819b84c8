"""Views of the distilled images and what a teacher answers to them, as columns of the set's Parquet.

`views` lists of every image what is shown: the box (left, top, width, height) in pixels of the image at
`image_size`, and whether it is mirrored; `soft_labels` lists the teacher's logits for each, in fp16. So a
view needs nothing of this project to be shown again: crop, resize (bilinear), mirror.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float16, UInt16
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .transforms import resize_and_crop

FIELDS = ("left", "top", "width", "height", "mirrored")
VIEWS, SOFT_LABELS, SHOWN = "views", "soft_labels", b"ims3_ray"


class Views(NamedTuple):
    """Of N images K views each."""

    boxes: UInt16[np.ndarray, "n k 5"]  # as FIELDS
    logits: Float16[np.ndarray, "n k classes"]
    image_size: int  # pixels a side, of what is cut and of what is shown
    teacher: str


def show(image: Image.Image, box: UInt16[np.ndarray, " 5"], size: int) -> Image.Image:
    """The view of `image`: brought to `size` as protocols do, its box enlarged to that, and mirrored."""
    whole = Image.fromarray(resize_and_crop(image, size).transpose(1, 2, 0))
    left, top, width, height, mirrored = map(int, box)
    inside = whole.crop((left, top, left + width, top + height))  # resize(box=…) would read outside of it
    shown = inside.resize((size, size), Image.Resampling.BILINEAR)
    return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else shown


def with_views(table: pa.Table, views: Views) -> pa.Table:
    """The set's table with both columns, which `datasets` of Hugging Face reads too."""
    count, each, classes = views.logits.shape
    flat = views.boxes.reshape(-1, len(FIELDS)).T
    columns = [pa.array(values.copy(), pa.uint16()) for values in flat]
    boxes = pa.StructArray.from_arrays(columns, list(FIELDS))
    numbers = _lists(pa.array(views.logits.reshape(-1), pa.float16()), count * each, classes)
    metadata = dict(table.schema.metadata)
    info = json.loads(metadata[b"huggingface"])
    info["info"]["features"] |= {
        VIEWS: [{name: {"dtype": "uint16", "_type": "Value"} for name in FIELDS}],
        SOFT_LABELS: [[{"dtype": "float16", "_type": "Value"}]],
    }
    told = {"image_size": views.image_size, "teacher": views.teacher}
    metadata |= {b"huggingface": json.dumps(info).encode(), SHOWN: json.dumps(told).encode()}
    table = table.append_column(VIEWS, _lists(boxes, count, each))
    table = table.append_column(SOFT_LABELS, _lists(numbers, count, each))
    return table.replace_schema_metadata(metadata)


def _lists(values: pa.Array, count: int, each: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * each), values)


def read_views(table: pa.Table) -> Views | None:
    """What `with_views` added; None where nothing was."""
    if SOFT_LABELS not in table.column_names:
        return None
    told = json.loads(table.schema.metadata[SHOWN])
    boxes, logits = (table[name].combine_chunks() for name in (VIEWS, SOFT_LABELS))
    fields = boxes.flatten()
    of_views = logits.flatten()
    count = len(table)
    return Views(
        np.stack([fields.field(name).to_numpy() for name in FIELDS], axis=1).reshape(count, -1, len(FIELDS)),
        of_views.flatten().to_numpy().reshape(count, len(of_views) // count, -1),
        told["image_size"],
        told["teacher"],
    )


class ViewSet(Dataset):
    """Every view of every image: item i is (PIL image or `transform` of it, the teacher's logits (classes,)).

    Those of an image follow each other.
    """

    def __init__(
        self,
        image: Callable[[int], Image.Image],
        views: Views,
        transform: Callable[[Image.Image], Any] | None,
    ):
        self._image, self._views, self._transform = image, views, transform

    def __len__(self) -> int:
        return self._views.boxes.shape[0] * self._views.boxes.shape[1]

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, view = divmod(index, self._views.boxes.shape[1])
        shown = show(self._image(row), self._views.boxes[row, view], self._views.image_size)
        logits = torch.from_numpy(self._views.logits[row, view].astype(np.float32))
        return (self._transform(shown) if self._transform else shown), logits
