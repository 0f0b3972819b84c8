"""Write the product. Reads the selected candidates, or what was refined of them, makes the distilled set."""

import itertools
from collections.abc import Sequence

import ray

from ims3_ray.cluster.machine import ANYWHERE
from ims3_ray.config.refinement import Refine
from ims3_ray.config.settings import Config
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
        images, classes, context.config.recipe, out.name, context.licences, made_in_words(context.config)
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


def made_in_words(config: Config) -> str:
    """How a run's images come to be: the end of the sentence "10 images a class, …", and what follows."""
    if config.refine.steps and config.refine.start == "medoids":
        return f"real images to begin with, k-means medoids of their class. {_refinement(config.refine)}"
    tuned = config.finetune.epochs > 0
    model = "diffusion model" + (" that was fine-tuned with Inversion-Matching" if tuned else "")
    if config.select.unit == "image":
        chosen = "each chosen for itself from a pool of candidates"
    elif (config.select.subgroups or config.sample.subgroups) == 1:
        chosen = "chosen among no others"
    else:
        chosen = "chosen by Selective Subgroup Sampling"
    cited = " (IMS3, arXiv 2603.13960)" if tuned and "Subgroup" in chosen else ""
    drawn = f"drawn by a class-conditional {model}, and\n{chosen}{cited}."
    return f"{drawn} {_refinement(config.refine)}" if config.refine.steps else drawn


def _refinement(settings: Refine) -> str:
    matched = {"gradients": "gradients of the loss", "features": "means of the maps"}[settings.objective]
    moved = {"latent": "latents", "pixel": "pixels"}[settings.space]
    return (
        f"Then refined in {settings.steps:,} steps: their {moved} were moved until {matched} of networks "
        "trained on the real images were those that real images give."
    )


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    rows = context.config.ipc * len(context.classes)
    return Cost(rows, disk=2 * rows * png_bytes(context))


STAGE = Stage(
    name="export",
    noun="distilled",
    version=3,  # 2: the card states licences; 3: it says how the run's own images came to be
    reads=("selection", "candidates", "refined"),
    is_read=lambda context, noun: (noun == "refined") == (context.config.refine.steps > 0),
    run=run,
    depends=lambda context: [context.config.recipe, list(context.classes), context.licences],
    cost=_cost,
)
