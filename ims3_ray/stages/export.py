"""Write the product. Reads the selected candidates, or what was refined of them, makes the distilled set."""

import itertools
from collections.abc import Sequence

import ray

from ims3_ray.cluster.machine import ANYWHERE
from ims3_ray.data import distilled
from ims3_ray.data.distilled import DistilledImage
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, read_rows

from .chosen import find_chosen, read_images
from .context import Context
from .contract import Stage
from .costs import Cost, Forward, png_bytes


def run(
    context: Context,
    out: Directory,
    selection: Directory | None = None,
    candidates: Directory | None = None,
    refined: Directory | None = None,
) -> dict[str, object]:
    """Write the images' bytes as class folders (a Ray task a class) and as Parquet, and the card."""
    classes = context.classes
    if refined:
        images = _refined(refined)
    else:
        assert selection
        assert candidates
        images = _chosen(candidates, selection, classes)
    shared = ray.put(images)
    write = ray.remote(num_cpus=0.5, **ANYWHERE)(distilled.write_class)
    entries = ray.get([write.remote(out, shared, classes, label) for label in range(len(classes))])
    out.write(distilled.PARQUET, distilled.to_parquet(images, classes))
    card = distilled.card(
        images, classes, context.config.recipe, out.name, context.licences, _refinement(context)
    )
    out.write("README.md", card.encode())
    return {"rows": len(images), "images": list(itertools.chain.from_iterable(entries))}


def _chosen(
    candidates: Directory, selection: Directory, classes: tuple[str, ...]
) -> Sequence[DistilledImage]:
    chosen = find_chosen(candidates, selection, classes)
    pngs = read_images(candidates, chosen)
    return [
        DistilledImage(image.label, image.place, image.subgroup, image.index, image.seed, png)
        for image, png in zip(chosen, pngs, strict=True)
    ]


def _refined(refined: Directory) -> Sequence[DistilledImage]:
    names = ["label", "place", *distilled.ORIGIN, "image"]
    rows = read_rows(refined, tables.REFINED, names)
    return [DistilledImage(*values) for values in zip(*(rows[name].tolist() for name in names), strict=True)]


def _refinement(context: Context) -> str | None:
    """What was done to the images after they were chosen, in words; None where nothing was."""
    settings = context.config.refine
    if not settings.steps:
        return None
    start = "real images, medoids of their class, " if settings.start == "medoids" else ""
    matched = {"gradients": "gradients of the loss", "features": "means of the maps"}[settings.objective]
    moved = {"latent": "latents", "pixel": "pixels"}[settings.space]
    return (
        f"{start}refined in {settings.steps:,} steps: their {moved} were moved until {matched} of networks "
        "trained on the real images were those that real images give"
    )


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    rows = context.config.ipc * len(context.classes)
    return Cost(rows, disk=2 * rows * png_bytes(context))


STAGE = Stage(
    name="export",
    noun="distilled",
    version=2,  # 2: the card states licences
    reads=("selection", "candidates", "refined"),
    is_read=lambda context, noun: (noun == "refined") == (context.config.refine.steps > 0),
    run=run,
    depends=lambda context: [context.config.recipe, list(context.classes), context.licences],
    cost=_cost,
)
