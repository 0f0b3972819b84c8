"""Writes the distilled set in common formats, and reads it as a torch Dataset.

train/<class>/<k>.png                         class folders, for torchvision's ImageFolder
data/train-00000-of-00001.parquet             the same images as Parquet, for Hugging Face's `load_dataset`
README.md                                     the data set card
distilled.json                                how to unpack the images, if packed; their kind, if real
manifest.json                                 checksum, class, subgroup, index and seed of every image
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import Dataset

from ims3_ray.display import markdown_code, markdown_text
from ims3_ray.errors import InputError
from ims3_ray.method.packing import pack
from ims3_ray.storage.artifacts import MANIFEST, Directory, open_directory, read_manifest
from ims3_ray.storage.directory import Stream
from ims3_ray.storage.hub import fetch_set, hub_name
from ims3_ray.storage.schemas import Columns

from .images import ImageSet, ParquetRows, Tiles
from .packed_sets import FACTOR, packing_factor, unpacked
from .sources import PARQUET, label_names
from .transforms import decode, encode_png, resize_and_crop
from .views import ViewSet, read_views

ORIGIN = ("subgroup", "index", "seed")  # of an image
SIZES = {"n<1K": 1000, "1K<n<10K": 10_000, "10K<n<100K": 100_000, "100K<n<1M": math.inf}  # the hub's
Origin = int | list[int]  # a list for a packed image: one value per tile
Entry = dict[str, object]  # of an image in the manifest
Licence = Mapping[str, str | None]  # id, name, link
Licences = Mapping[str, Licence | None]  # of "weights" and "images"; None if not stated


@dataclass(frozen=True)
class DistilledImage:
    """One image of the set, and the candidate that it was made from."""

    label: int
    place: int  # index in the class
    subgroup: Origin
    index: Origin
    seed: Origin
    png: bytes


class Method(NamedTuple):
    """The kind of a set's images ("synthetic", "real", "refined real"), and how they were made."""

    kind: str
    description: str


def is_selected(selection: Mapping[str, Any], classes: Sequence[str], rows: Columns) -> np.ndarray:
    """Returns which candidates (N,) bool a selection.json names: subgroups or single images."""
    of_class = selection["selection"]
    if selection["unit"] == "subgroup":
        subgroups = np.array([of_class[name] for name in classes])
        return (rows["subgroup"] == subgroups[rows["label"]]) & (rows["index"] < selection["ipc"])
    selected = {(label, g, k) for label, name in enumerate(classes) for g, k in of_class[name]}
    keys = (rows[name].tolist() for name in ("label", "subgroup", "index"))
    return np.array([key in selected for key in zip(*keys, strict=True)], dtype=bool)


def pack_images(images: Sequence[DistilledImage], tiles: Tiles) -> list[DistilledImage]:
    """Returns the stored images of a packed set: f² consecutive images each, reduced to tiles."""
    pixels = np.stack([resize_and_crop(decode(image.png), tiles.side) for image in images])
    stored, size = pack(torch.from_numpy(pixels), tiles.factor).numpy(), tiles.factor**2
    packed: list[DistilledImage] = []
    for number, joined in enumerate(stored):
        of_image = images[number * size : (number + 1) * size]
        origin = {name: [getattr(image, name) for image in of_image] for name in ORIGIN}
        label, place = of_image[0].label, of_image[0].place // size
        packed.append(DistilledImage(label, place, **origin, png=encode_png(joined)))
    return packed


def image_path(image: DistilledImage, classes: Sequence[str], ipc: int) -> str:
    """Returns the path of the image's PNG. `ipc` fixes the number of digits."""
    return f"train/{classes[image.label]}/{image.place:0{len(str(ipc - 1))}d}.png"


def write_pngs(
    out: Directory, images: Sequence[DistilledImage], classes: Sequence[str], ipc: int
) -> list[Entry]:
    """Write PNGs of the set. Returns their entries in the manifest."""
    entries: list[Entry] = []
    for image in images:
        path = image_path(image, classes, ipc)
        out.write(path, image.png)
        origin = {name: getattr(image, name) for name in ORIGIN}
        checksum = hashlib.sha256(image.png).hexdigest()
        entries.append({"path": path, "sha256": checksum, "class": classes[image.label], **origin})
    return entries


def to_table(images: Sequence[DistilledImage], classes: Sequence[str], ipc: int) -> pa.Table:
    """Returns images and labels with their class names, in the format of Hugging Face `datasets`."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    is_packed = isinstance(images[0].subgroup, list)
    number = {"dtype": "int64", "_type": "Value"}
    features |= {name: [number] if is_packed else number for name in ORIGIN}
    pngs = [{"bytes": i.png, "path": image_path(i, classes, ipc).replace("/", "_")} for i in images]
    columns = {"image": pa.array(pngs, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    columns["label"] = pa.array([image.label for image in images], pa.int64())
    of_image = pa.list_(pa.int64()) if is_packed else pa.int64()
    columns |= {name: pa.array([getattr(image, name) for image in images], of_image) for name in ORIGIN}
    info: dict[str, object] = {"features": features}
    if isinstance(images[0].subgroup, list):
        info[FACTOR] = math.isqrt(len(images[0].subgroup))  # the library `datasets` ignores it
    metadata = {"huggingface": json.dumps({"info": info})}
    return pa.table(columns).replace_schema_metadata(metadata)


def write_parquet(out: Directory, tables: Callable[[], Iterable[pa.Table]]) -> None:
    """Write the set as one Parquet file, one row group per table. One table is in memory at a time."""

    def fill(stream: Stream) -> None:
        writer = None
        for table in tables():
            writer = writer or pq.ParquetWriter(stream, table.schema)
            writer.write_table(table)
        assert writer, "a set without images"
        writer.close()

    out.write_stream(PARQUET, fill)


def card(
    num_images: int,
    classes: Sequence[str],
    recipe: str,
    title: str,
    fingerprint: str,
    licences: Licences,
    method: Method,
) -> str:
    """Returns the set's README.md for the Hugging Face hub.

    `title` is the run's subject, or its recipe's name.
    """
    per_class = num_images // len(classes)
    head = "" if title == recipe else f"{markdown_text(title)}: "
    names = ", ".join(markdown_text(json.dumps(name, ensure_ascii=False)) for name in classes[:20])
    names += ", …" if len(classes) > 20 else ""
    return f"""---
{licence_entries(licences)}
task_categories:
- image-classification
tags:
- dataset-distillation
size_categories:
- {next(size for size, below in SIZES.items() if num_images < below)}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
# {head}{num_images} {method.kind} images that stand for a training set of {len(classes)} classes

{per_class} images per class, {method.description} Made with ims3_ray.

- recipe {markdown_code(recipe)}, artefact `{fingerprint}`
- classes: {names}
- `manifest.json` lists checksum, class, subgroup, index and seed of every image

## Licences

{_describe_terms(licences, method.kind)}
- the real images: {_describe(licences["images"], "data.licence")}
"""


def _describe_terms(licences: Licences, kind: str) -> str:
    if "weights" not in licences:
        return f"The images are {kind} training images, whose terms apply:\n"
    return f"""The images are {kind}. The generator's weights and the real images went into them; \
the terms of both apply:

- the generator's weights: {_describe(licences["weights"], "model.licence")}"""


def licence_entries(licences: Licences) -> str:
    """Returns the licence in the front matter: the hub's identifiers, `unknown` if none is stated."""
    entries = [licence or {"id": "unknown"} for licence in licences.values()]
    ids = list(dict.fromkeys(licence["id"] for licence in entries))
    lines = [f"license: {ids[0]}"] if len(ids) == 1 else ["license:", *(f"- {name}" for name in ids)]
    other = next((licence for licence in entries if licence["id"] == "other"), {})
    lines += [f"license_{key}: {json.dumps(other[key])}" for key in ("name", "link") if other.get(key)]
    return "\n".join(lines)


def _describe(licence: Licence | None, field: str) -> str:
    if licence is None:
        return f"not stated ({field} of the recipe)"
    return ", ".join(
        markdown_text(text) for text in (licence["name"] or licence["id"], licence["link"]) if text
    )


def list_images(directory: Directory, classes: Sequence[str], tiles: Tiles | None = None) -> ImageSet:
    """Returns the images of a complete set, in the order of its Parquet file, without reading one.

    `tiles` are those of a packed set.
    """
    manifest = read_manifest(directory)
    assert manifest, directory.uri
    entries, label_of = manifest.get("images", []), {name: label for label, name in enumerate(classes)}
    paths, ids = (tuple(str(entry[key]) for entry in entries) for key in ("path", "sha256"))
    labels = np.array([label_of[str(entry["class"])] for entry in entries], np.int64)
    parquet = ParquetRows((PARQUET,))
    return ImageSet(directory, tuple(classes), paths, labels, ids, parquet=parquet, tiles=tiles)


class DistilledSet(Dataset):
    """The distilled images in memory: item i is (PIL image or `transform` of it, index into `classes`).

    With `factor` f, the items are the images of a packed set: f² for each stored one. `soft_labels`
    (N, K, classes) are a teacher's logits for K views of every image, or None.
    """

    def __init__(
        self, directory: Directory, transform: Callable[[Image.Image], Any] | None = None, factor: int = 1
    ):
        self._place, self._factor = directory.uri, factor
        with pa.BufferReader(directory.read(PARQUET)) as source:
            table = pq.read_table(source)
        self.classes = _class_names(table.schema)
        self.targets: list[int] = np.repeat(table["label"].to_numpy(), factor**2).tolist()
        self.transform = transform
        self._pngs = [row["bytes"] for row in table["image"].to_pylist()]
        self._views = read_views(table)
        self.soft_labels = None if self._views is None else torch.from_numpy(self._views.logits.copy())

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        stored, tile = divmod(index, self._factor**2)
        image = unpacked(self._pngs[stored], self._factor, self._place)[tile]
        return (self.transform(image) if self.transform else image), self.targets[index]

    def views(self) -> ViewSet:
        """Returns every view with the teacher's logits. Raises InputError for a set without soft labels."""
        if self._views is None:
            raise InputError("the set holds no soft labels; distil it with export.soft_labels=K")
        return ViewSet(lambda index: decode(self._pngs[index]), self._views, self.transform)


def read_classes(directory: Directory) -> list[str]:
    """Returns the class names of the set by label, without reading an image."""
    with directory.filesystem.open_input_file((directory / PARQUET).path) as source:
        return _class_names(pq.read_schema(source))


def _class_names(schema: pa.Schema) -> list[str]:
    if not (names := label_names(schema)):
        raise ValueError("its labels have no names")
    return names


def load_distilled(
    location: str, transform: Callable[[Image.Image], Any] | None = None, *, unpack: bool = True
) -> DistilledSet:
    """Returns the distilled set at a local path, URI or `hf://ORG/NAME` as a torch Dataset.

    A packed set is unpacked: each stored image gives f² items, enlarged to its own size. With `unpack=False`
    it gives the stored images, with a warning. Raises InputError if there is no complete set, if its card
    states another f, and if a set of the hub differs from its checksums.
    """
    directory = open_directory(fetch_set(location) if hub_name(location) else location)
    if read_manifest(directory) is None or not directory.exists(PARQUET):
        raise InputError(
            f"{location}: holds no complete distilled set ({MANIFEST} and {PARQUET}); finish its run first"
        )
    factor = packing_factor(directory)
    if factor > 1 and not unpack:
        each = f"its images hold {factor} × {factor} smaller ones each"
        warnings.warn(f"{location}: is packed, and {each}; train on them unpacked", stacklevel=2)
    try:
        return DistilledSet(directory, transform, factor if unpack else 1)
    except (pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{location}: {PARQUET} was not written by this project ({error!r}); run its recipe again"
        ) from error
