"""Write the product. Reads the selected candidates, or what was refined of them, makes the distilled set."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray

from ims3_ray.cluster.tasks import map_in_order
from ims3_ray.config.evaluation import Refine
from ims3_ray.config.load import subject
from ims3_ray.config.settings import Config
from ims3_ray.data import distilled
from ims3_ray.data.distilled import DistilledImage
from ims3_ray.data.views import SOFT_LABELS, VIEWS, with_views
from ims3_ray.display import format_bytes
from ims3_ray.evaluation.protocols import protocol
from ims3_ray.evaluation.soft_labels import Labelling, label
from ims3_ray.evaluation.teacher import name_of, teacher_rules
from ims3_ray.method.refine import OBJECTIVES
from ims3_ray.progress import bar
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory, part_names, read_part

from .base import (
    KEY_BYTES,
    Cost,
    Forward,
    GpuUsage,
    Stage,
    classifier_operations,
    classifier_usage,
    png_bytes,
)
from .context import Context
from .evaluate.teacher import teacher_of
from .selected import SelectedCandidate, find_selected, read_images

BLOCK = 1000  # images that are in memory at once, and in a row group
MOST_BLOCKS = 8  # on their way at once
Read = Callable[[Directory, list[Any]], list[DistilledImage]]
Block = tuple[Read, Directory, list[Any]]  # how it is read, from where, and what of it


def run(
    context: Context,
    out: Directory,
    selection: Directory | None = None,
    candidates: Directory | None = None,
    refined: Directory | None = None,
    teacher: Directory | None = None,
) -> dict[str, object]:
    """Write the images' bytes as class folders and as Parquet, and the card.

    A Ray task writes a block of images, which is a row group of the Parquet file, too; where soft labels are
    kept, it asks the teacher.
    """
    classes, ipc = context.classes, context.config.ipc
    if refined:
        blocks = _refined_blocks(refined, ipc)
    else:
        assert selection
        assert candidates
        blocks = _chosen_blocks(candidates, selection, classes)
    entries: list[distilled.Entry] = []
    use, labelling, resources = _use(context), _labelling(context, teacher), {}
    if labelling:
        resources = context.machine.classifier_resources(len(blocks))

    def tables_of_blocks() -> Iterator[pa.Table]:
        entries.clear()
        names, how = ray.put(classes), ray.put(labelling)  # once, not once a block
        work = ((out, *block, names, ipc, how) for block in blocks)
        with bar("export", ipc * len(classes), "images") as shown:
            for of_block, table in map_in_order(_write_block, work, use.workers, **resources):
                entries.extend(of_block)
                shown.update(len(of_block))
                yield table

    distilled.write_parquet(out, tables_of_blocks)
    card = distilled.card(
        len(entries),
        classes,
        context.config.recipe,
        subject(context.config),
        out.name,
        context.licences,
        made_in_words(context.config) + (_labelled(labelling) if labelling else ""),
    )
    out.write("README.md", card.encode())
    checksums = {entry["path"]: entry["sha256"] for entry in entries}
    return {"rows": len(entries), "images": entries, "checksums": checksums}


def _chosen_blocks(candidates: Directory, selection: Directory, classes: tuple[str, ...]) -> list[Block]:
    chosen = find_selected(candidates, selection, classes)
    cut = [chosen[start : start + BLOCK] for start in range(0, len(chosen), BLOCK)]
    return [(_read_chosen, candidates, block) for block in cut]


def _refined_blocks(refined: Directory, ipc: int) -> list[Block]:
    """Whole parts, each of which holds a class."""
    names, most = part_names(refined), max(1, BLOCK // ipc)
    return [(_read_refined, refined, names[start : start + most]) for start in range(0, len(names), most)]


def _write_block(
    out: Directory,
    read: Read,
    source: Directory,
    which: list[Any],
    classes: tuple[str, ...],
    ipc: int,
    labelling: Labelling | None,
) -> tuple[list[distilled.Entry], pa.Table]:
    images = read(source, which)
    table = distilled.to_table(images, classes, ipc)
    if labelling:
        table = with_views(table, label(images, labelling))
    return distilled.write_pngs(out, images, classes, ipc), table


def _read_chosen(candidates: Directory, chosen: list[SelectedCandidate]) -> list[DistilledImage]:
    return [
        DistilledImage(image.label, image.place, image.subgroup, image.index, image.seed, png)
        for image, png in zip(chosen, read_images(candidates, chosen), strict=True)
    ]


def _read_refined(refined: Directory, parts: list[str]) -> list[DistilledImage]:
    names = ["label", "place", *distilled.ORIGIN, "image"]
    images: list[DistilledImage] = []
    for part in parts:
        rows = read_part(refined, part, schemas.REFINED, names)
        images += [DistilledImage(*values) for values in zip(*(rows[n].tolist() for n in names), strict=True)]
    return images


def _labelling(context: Context, trained: Directory | None) -> Labelling | None:
    """How the views are labelled, the teacher held against real images; None where none are kept."""
    config, views = context.config, context.config.export.soft_labels
    if not views:
        return None
    teacher = teacher_of(config.evaluate, context.images["train"], trained, context.machine)
    assert teacher, config.evaluate.protocol
    rules = protocol(config.evaluate.protocol)
    return Labelling(teacher, rules, context.classes, views, config.seed, context.machine.device)


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
    matched = OBJECTIVES[settings.objective].words
    moved = {"latent": "latents", "pixel": "pixels"}[settings.space]
    return (
        f"Then refined in {settings.steps:,} steps: their {moved} were moved until {matched} of networks "
        "trained on the real images were those that real images give."
    )


def _labelled(how: Labelling) -> str:
    count = how.views * len(how.classes)
    return (
        f"\n\nOf every image {how.views:,} views are listed in the Parquet's column `{VIEWS}`, and a "
        f"teacher's logits for them, in fp16, in `{SOFT_LABELS}` ({format_bytes(2 * count)} an image before "
        f"compression). The teacher is {name_of(how.teacher.given)}, which labels "
        f"{100 * how.teacher.accuracy:.1f} % of real training images right."
    )


def _fingerprint_inputs(context: Context) -> object:
    config, labelled = context.config, None
    if config.export.soft_labels:
        rules = protocol(config.evaluate.protocol).model_dump(mode="json")
        asked = [context.inputs.get("teacher"), context.inputs["images"], context.machine.device]
        labelled = [config.export.soft_labels, config.seed, rules, *asked]
    return [config.recipe, subject(config), list(context.classes), context.licences, labelled]


def _use(context: Context) -> GpuUsage:
    if context.config.export.soft_labels:
        rows = context.config.ipc * len(context.classes)
        return classifier_usage(context, math.ceil(rows / BLOCK))
    return GpuUsage(min(MOST_BLOCKS, context.machine.cpus))


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    config = context.config
    rows = config.ipc * len(context.classes)
    block = min(BLOCK, rows) * png_bytes(context)
    part = context.batch_size(context.config.sample) * png_bytes(context)
    driver = 2 * block + context.num_candidates * KEY_BYTES
    operations, kept = 0.0, 0.0
    if views := config.export.soft_labels:
        rules = teacher_rules(config.evaluate.protocol)
        operations = views * classifier_operations(rules, len(context.classes))
        kept = 2.0 * views * len(context.classes)
    return Cost(
        rows,
        operations,
        disk=rows * (2 * png_bytes(context) + kept),
        memory=2 * block + part,
        driver=driver,
    )


def _needs_input(context: Context, noun: str) -> bool:
    if noun == "teacher":
        return context.config.export.soft_labels > 0
    return (noun == "refined") == (context.config.refine.steps > 0)


STAGE = Stage(
    name="export",
    output="distilled",
    version=4,
    inputs=("selection", "candidates", "refined", "teacher"),
    needs_input=_needs_input,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=_use,
)
