"""Export the distilled set: selected candidates, or their refined images → class folders, Parquet, card."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray

from ims3_ray.cluster.tasks import map_in_order
from ims3_ray.config.load import subject
from ims3_ray.config.settings import Config
from ims3_ray.data import distilled
from ims3_ray.data.distilled import DistilledImage
from ims3_ray.data.images import Tiles
from ims3_ray.data.packed_sets import packed_card, packing_statement
from ims3_ray.data.sources import STATEMENT
from ims3_ray.data.views import SOFT_LABELS, VIEWS, with_views
from ims3_ray.display import format_bytes
from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.evaluation.teacher import Labelling, label, teacher_name, teacher_protocol
from ims3_ray.method.refine import OBJECTIVES
from ims3_ray.progress import bar
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import part_names, read_part

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

BLOCK = 1000  # images per task and per row group
MAX_BLOCKS = 8  # tasks at once
Read = Callable[[Directory, list[Any]], list[DistilledImage]]


@dataclass(frozen=True)
class Layout:
    """Class names, IPC and packing of the set, for its blocks."""

    classes: tuple[str, ...]
    ipc: int
    tiles: Tiles | None  # of a packed set


Block = tuple[Read, Directory, list[Any]]  # reader, source, rows or parts of the source


def run(
    context: Context,
    out: Directory,
    selection: Directory | None = None,
    candidates: Directory | None = None,
    refined: Directory | None = None,
    teacher: Directory | None = None,
) -> dict[str, object]:
    """Write the images as class folders and as Parquet, and the dataset card.

    A Ray task writes one block of images, which becomes one row group; the task also runs the teacher if soft
    labels are exported.
    """
    classes, ipc, tiles = context.classes, context.config.ipc, context.tiles
    if refined:
        blocks = _refined_blocks(refined, context.config.unpacked_ipc)
    else:
        assert selection
        assert candidates
        blocks = _selected_blocks(candidates, selection, classes, tiles)
    entries: list[distilled.Entry] = []
    usage, labelling, resources = _gpu_usage(context), _labelling(context, teacher), {}
    if labelling:
        resources = context.machine.classifier_resources(len(blocks))

    def tables_of_blocks() -> Iterator[pa.Table]:
        entries.clear()
        shared = ray.put(Layout(classes, ipc, tiles)), ray.put(labelling)  # sent once, not once per block
        work = ((out, *block, *shared) for block in blocks)
        with bar("export", ipc * len(classes), "images") as progress:
            for block_entries, table in map_in_order(_write_block, work, usage.workers, **resources):
                entries.extend(block_entries)
                progress.update(len(block_entries))
                yield table

    distilled.write_parquet(out, tables_of_blocks)
    _write_card(context, out, len(entries), labelling)
    checksums = {entry["path"]: entry["sha256"] for entry in entries}
    return {"rows": len(entries), "images": entries, "checksums": checksums}


def _write_card(context: Context, out: Directory, count: int, labelling: Labelling | None) -> None:
    description = describe_method(context.config) + (_describe_labels(labelling) if labelling else "")
    card = distilled.card(
        count,
        context.classes,
        context.config.recipe,
        subject(context.config),
        out.name,
        context.licences,
        distilled.Method(context.config.kind_of_images, description),
    )
    if context.tiles:
        card = packed_card(card, context.tiles)
    kind = context.config.kind_of_images
    if context.tiles or kind != "synthetic":
        statement = packing_statement(context.tiles or Tiles(1, context.stored_size))
        out.write_json(STATEMENT, statement if kind == "synthetic" else {**statement, "images": kind})
    out.write("README.md", card.encode())


def _selected_blocks(
    candidates: Directory, selection: Directory, classes: tuple[str, ...], tiles: Tiles | None
) -> list[Block]:
    """Blocks of BLOCK candidates, or of as many as fill whole images of a packed set."""
    selected, each = find_selected(candidates, selection, classes), tiles.factor**2 if tiles else 1
    size = BLOCK // each * each
    starts = range(0, len(selected), size)
    return [(_read_selected, candidates, selected[start : start + size]) for start in starts]


def _refined_blocks(refined: Directory, ipc: int) -> list[Block]:
    """Blocks of whole parts; a part holds one class."""
    names, size = part_names(refined), max(1, BLOCK // ipc)
    return [(_read_refined, refined, names[start : start + size]) for start in range(0, len(names), size)]


def _write_block(
    out: Directory,
    read: Read,
    source: Directory,
    rows: list[Any],
    layout: Layout,
    labelling: Labelling | None,
) -> tuple[list[distilled.Entry], pa.Table]:
    images, classes, ipc = read(source, rows), layout.classes, layout.ipc
    if layout.tiles:
        images = distilled.pack_images(images, layout.tiles)
    table = distilled.to_table(images, classes, ipc)
    if labelling:
        table = with_views(table, label(images, labelling))
    return distilled.write_pngs(out, images, classes, ipc), table


def _read_selected(candidates: Directory, selected: list[SelectedCandidate]) -> list[DistilledImage]:
    return [
        DistilledImage(image.label, image.place, image.subgroup, image.index, image.seed, png)
        for image, png in zip(selected, read_images(candidates, selected), strict=True)
    ]


def _read_refined(refined: Directory, parts: list[str]) -> list[DistilledImage]:
    names = ["label", "place", *distilled.ORIGIN, "image"]
    images: list[DistilledImage] = []
    for part in parts:
        rows = read_part(refined, part, schemas.REFINED, names)
        images += [DistilledImage(*values) for values in zip(*(rows[n].tolist() for n in names), strict=True)]
    return images


def _labelling(context: Context, trained: Directory | None) -> Labelling | None:
    """How views are labelled, with the teacher's accuracy on real images; None without soft labels."""
    config, views = context.config, context.config.export.soft_labels
    if not views:
        return None
    teacher = teacher_of(config.evaluate, context.images["train"], trained, context.machine)
    assert teacher, config.evaluate.protocol
    rules = get_protocol(config.evaluate.protocol)
    return Labelling(teacher, rules, context.classes, views, config.seed, context.machine.device)


def describe_method(config: Config) -> str:
    """How a run makes its images, for the card: completes "10 images per class, …"."""
    if not config.makes_candidates:
        start = "starting from real images, the k-means medoids of each class"
        return f"{start}. {_describe_refinement(config)}"
    tuned, subgroups = config.is_tuned, config.select.subgroups or config.sample.subgroups
    model = "diffusion model" + (" that was fine-tuned with Inversion-Matching" if tuned else "")
    if config.select.unit == "image":
        choice = "selected image by image from a pool of candidates"
    elif subgroups == 1:
        choice = "used without selection"
    else:
        choice = "selected by Selective Subgroup Sampling"
    cited = " (IMS3, arXiv 2603.13960)" if tuned and "Subgroup" in choice else ""
    method = f"sampled from a class-conditional {model}, and\n{choice}{cited}."
    if config.source == "real":
        method = f"real training images, scaled and {choice}."
        method += "" if config.refine.steps else " They are copies, not synthetic images."
    return f"{method} {_describe_refinement(config)}" if config.refine.steps else method


def _describe_refinement(config: Config) -> str:
    settings, probe = config.refine, config.probe
    matched = OBJECTIVES[settings.objective].description
    variables = {"latent": "latents", "pixel": "pixels"}[settings.space]
    is_trained = probe.count and any(probe.checkpoint_steps)
    networks = "networks trained on the real images" if is_trained else "untrained networks"
    return (
        f"Then refined in {settings.steps:,} steps: their {variables} were optimised until {matched} of "
        f"{networks} match those of real images."
    )


def _describe_labels(how: Labelling) -> str:
    count = how.views * len(how.classes)
    return (
        f"\n\nThe Parquet column `{VIEWS}` lists {how.views:,} views per image, and `{SOFT_LABELS}` a "
        f"teacher's fp16 logits for them ({format_bytes(2 * count)} per image before compression). The "
        f"teacher is {teacher_name(how.teacher.source)}; it classifies {100 * how.teacher.accuracy:.1f} % "
        "of the real training images correctly."
    )


def _fingerprint_inputs(context: Context) -> object:
    config, soft_labels = context.config, None
    if config.export.soft_labels:
        rules = get_protocol(config.evaluate.protocol).model_dump(mode="json")
        teacher = [context.inputs.get("teacher"), context.inputs["images"], context.machine.device]
        soft_labels = [config.export.soft_labels, config.seed, rules, *teacher]
    tiles = [asdict(context.tiles)] if context.tiles else []
    return [config.recipe, subject(config), list(context.classes), context.licences, soft_labels, *tiles]


def _gpu_usage(context: Context) -> GpuUsage:
    if context.config.export.soft_labels:
        rows = context.config.ipc * len(context.classes)
        return classifier_usage(context, math.ceil(rows / BLOCK))
    return GpuUsage(min(MAX_BLOCKS, context.machine.cpus))


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    config = context.config
    rows = config.ipc * len(context.classes)
    block = min(BLOCK, rows) * png_bytes(context)
    part = context.batch_size(context.config.sample) * png_bytes(context)
    driver = 2 * block + context.num_candidates * KEY_BYTES
    operations, labels = 0.0, 0.0
    if views := config.export.soft_labels:
        rules = teacher_protocol(config.evaluate.protocol)
        operations = views * classifier_operations(rules, len(context.classes))
        labels = 2.0 * views * len(context.classes)
    return Cost(
        rows,
        operations,
        disk=rows * (2 * png_bytes(context) + labels),
        memory=2 * block + part,
        driver=driver,
    )


def _needs_input(context: Context, kind: str) -> bool:
    if kind == "teacher":
        return context.config.export.soft_labels > 0
    return (kind == "refined") == (context.config.refine.steps > 0)


STAGE = Stage(
    name="export",
    output="distilled",
    version=5,
    inputs=("selection", "candidates", "refined", "teacher"),
    needs_input=_needs_input,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=_gpu_usage,
)
