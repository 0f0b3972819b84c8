"""Stage sample without a generator: the candidates are subgroups of real training images.

A class's images, in an order keyed by (seed, class, round), are cut into subgroups. When all are used, the
next round begins. Single images are selected from the first round only, so none is a candidate twice.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ims3_ray.cluster.fan_out import Part, fan_out, rows_per_part
from ims3_ray.data.loader import BatchReader
from ims3_ray.data.transforms import encode_png
from ims3_ray.method.seeding import permutation
from ims3_ray.stages.base import KEY_BYTES, Cost, Forward, parts_bytes, pixel_bytes, png_bytes
from ims3_ray.stages.context import Context
from ims3_ray.stages.selected import REAL
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import Index, places_by_class, read_index
from ims3_ray.storage.schemas import Columns

Candidate = tuple[int, int, int, int, str]  # class, subgroup, index, row of its features, path


def run(context: Context, out: Directory, features: Directory) -> dict[str, Any]:
    """Write the candidates, with the features of stage embed."""
    index, train = read_index(features, schemas.FEATURES, ["image_id", "label"]), context.images["train"]
    path_of = dict(zip(train.ids, train.paths, strict=True))
    ids, candidates = index.keys["image_id"].tolist(), list[Candidate]()
    for label, rows in enumerate(places_by_class(index.labels, len(context.classes))):
        for place, row in enumerate(draw(context, label, len(rows))):
            subgroup, k = divmod(place, context.config.pool_ipc)
            candidates.append((label, subgroup, k, int(rows[row]), path_of[ids[rows[row]]]))
    size = part_rows(context)
    batches = [candidates[start : start + size] for start in range(0, len(candidates), size)]
    parts = [Part(number, len(batch), batch) for number, batch in enumerate(batches)]
    arguments = {
        "images": train.directory,
        "features": index,
        "image_size": context.image_size,
        "batch_size": context.batch_size(context.config.embed),
    }
    table, machine = schemas.CANDIDATES, context.machine
    return fan_out(RealImages, arguments, parts, table=table, out=out, machine=machine, stage="sample")


def draw(context: Context, label: int, count: int) -> Iterator[int]:
    """Yield rows of a class's `count` images, subgroup by subgroup."""
    config, by_image = context.config, context.config.select.unit == "image"
    size, left = config.pool_ipc, config.pool_ipc * config.sample.subgroups
    whole = count if by_image else count // size * size
    for number in range(1 if by_image else -(-left // whole)):
        order = permutation(count, "real", config.seed, context.classes[label], number)
        rows = order[: min(whole, left)].tolist()
        left -= len(rows)
        yield from rows


class RealImages:
    """Actor: takes a batch of candidates, returns its images and features."""

    def __init__(self, images: Directory, features: Index, image_size: int, batch_size: int):  # noqa: ARG002 of fan_out
        self._read, self._features = BatchReader(images, image_size), features

    def __call__(self, payload: list[Candidate]) -> tuple[Columns, dict[str, str]]:
        label, subgroup, index, row, paths = (list(column) for column in zip(*payload, strict=True))
        pixels, _, bad = self._read({"paths": paths, "ids": paths, "labels": label})
        assert not bad, bad  # they have features
        columns = {
            "label": np.array(label, np.int64),
            "subgroup": np.array(subgroup, np.int64),
            "index": np.array(index, np.int64),
            "seed": np.full(len(label), REAL),
            "image": np.array([encode_png(image) for image in pixels], dtype=object),
            "feature": self._features.take(np.array(row)).read(),
        }
        return columns, {}


def part_rows(context: Context) -> int:
    """Return the candidates per part."""
    return rows_per_part(context.num_candidates, context.batch_size(context.config.embed))


def fingerprint_inputs(context: Context) -> object:
    """Return all but the features that decides the candidates."""
    config = context.config
    settings = [config.pool_ipc, config.sample.subgroups, config.select.unit, config.seed]
    return [*settings, list(context.classes), context.image_size, part_rows(context)]


def cost(context: Context, forward: Forward) -> Cost:
    """Return the cost of reading and storing the images again."""
    rows, row = context.num_candidates, png_bytes(context) + 4 * forward.feature_dim
    memory = parts_bytes(part_rows(context), pixel_bytes(1, context.image_size) + row)
    return Cost(rows, disk=rows * row, memory=memory, driver=rows * KEY_BYTES)
