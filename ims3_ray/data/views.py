"""Views of the distilled images and a teacher's logits for them, as columns of the set's Parquet file.

`views` lists each view of an image: its box (left, top, width, height) in pixels of the image at
`image_size`, and whether it is mirrored. `soft_labels` lists the teacher's logits of each view, in fp16. Any
program can repeat a view: crop, resize (bilinear), mirror.
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
VIEWS, SOFT_LABELS, METADATA = "views", "soft_labels", b"ims3_ray"


class Views(NamedTuple):
    """K views of each of N images."""

    boxes: UInt16[np.ndarray, "n k 5"]  # as FIELDS
    logits: Float16[np.ndarray, "n k classes"]
    image_size: int  # side in pixels, before the crop and of the view
    teacher: str


def render_view(image: Image.Image, box: UInt16[np.ndarray, " 5"], size: int) -> Image.Image:
    """Returns the view: `image` scaled to `size` as protocols do, its box enlarged to `size`, mirrored."""
    whole = Image.fromarray(resize_and_crop(image, size).transpose(1, 2, 0))
    left, top, width, height, mirrored = map(int, box)
    inside = whole.crop(
        (left, top, left + width, top + height)
    )  # resize(box=…) reads pixels outside of the box
    view = inside.resize((size, size), Image.Resampling.BILINEAR)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else view


def with_views(table: pa.Table, views: Views) -> pa.Table:
    """Returns the set's table with both columns, which `datasets` reads too."""
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
    settings = {"image_size": views.image_size, "teacher": views.teacher}
    metadata |= {b"huggingface": json.dumps(info).encode(), METADATA: json.dumps(settings).encode()}
    table = table.append_column(VIEWS, _lists(boxes, count, each))
    table = table.append_column(SOFT_LABELS, _lists(numbers, count, each))
    return table.replace_schema_metadata(metadata)


def _lists(values: pa.Array, count: int, each: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * each), values)


def read_views(table: pa.Table) -> Views | None:
    """Returns what `with_views` added, or None."""
    if SOFT_LABELS not in table.column_names:
        return None
    settings = json.loads(table.schema.metadata[METADATA])
    count, fields = len(table), table[VIEWS].combine_chunks().flatten()
    boxes = np.stack([fields.field(name).to_numpy() for name in FIELDS], axis=1)
    chunks = table[SOFT_LABELS].chunks  # joined, more than 2³¹ numbers would overflow Arrow's offsets
    logits = np.concatenate([chunk.flatten().flatten().to_numpy() for chunk in chunks])
    return Views(
        boxes.reshape(count, -1, len(FIELDS)),
        logits.reshape(count, len(boxes) // count, -1),
        settings["image_size"],
        settings["teacher"],
    )


class ViewSet(Dataset):
    """All views, image by image. An item is (PIL image or `transform` of it, teacher's logits (classes,))."""

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
        image = render_view(self._image(row), self._views.boxes[row, view], self._views.image_size)
        logits = torch.from_numpy(self._views.logits[row, view].astype(np.float32))
        return (self._transform(image) if self._transform else image), logits
