"""Write the product. Reads the selection and the selected candidates, makes the distilled set."""

import itertools
from collections.abc import Sequence

import numpy as np
import ray

from ims3_ray.cluster.machine import ANYWHERE
from ims3_ray.data import distilled
from ims3_ray.data.distilled import DistilledImage
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, read_rows

from .context import Context
from .contract import Stage
from .costs import Cost, Forward, png_bytes


def run(context: Context, out: Directory, selection: Directory, candidates: Directory) -> dict[str, object]:
    """Copy the chosen candidates' bytes into class folders (a Ray task a class), Parquet, and the card."""
    classes = context.classes
    images = _read_images(candidates, selection, classes)
    shared = ray.put(images)
    write = ray.remote(num_cpus=0.5, **ANYWHERE)(distilled.write_class)
    entries = ray.get([write.remote(out, shared, classes, label) for label in range(len(classes))])
    out.write(distilled.PARQUET, distilled.to_parquet(images, classes))
    card = distilled.card(images, classes, context.config.recipe, out.name, context.licences)
    out.write("README.md", card.encode())
    return {"rows": len(images), "images": list(itertools.chain.from_iterable(entries))}


def _read_images(
    candidates: Directory, selection: Directory, classes: tuple[str, ...]
) -> Sequence[DistilledImage]:
    """The chosen candidates, by class, subgroup and index."""
    rows = read_rows(candidates, tables.CANDIDATES, ["label", "subgroup", "index", "seed", "image"])
    chosen = np.flatnonzero(distilled.is_selected(selection.read_json("selection.json"), classes, rows))
    chosen = chosen[np.lexsort(tuple(rows[name][chosen] for name in ("index", "subgroup", "label")))]
    places = {label: itertools.count() for label in range(len(classes))}
    images = []
    for row in chosen:
        label, group, index, seed = (int(rows[n][row]) for n in ("label", "subgroup", "index", "seed"))
        png = bytes(rows["image"][row])
        images.append(DistilledImage(label, next(places[label]), group, index, seed, png))
    return images


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    rows = context.config.ipc * len(context.classes)
    return Cost(rows, disk=2 * rows * png_bytes(context))


STAGE = Stage(
    name="export",
    noun="distilled",
    version=2,  # 2: the card states licences
    reads=("selection", "candidates"),
    run=run,
    depends=lambda context: [context.config.recipe, list(context.classes), context.licences],
    cost=_cost,
)
