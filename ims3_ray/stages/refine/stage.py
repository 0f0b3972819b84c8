"""Stage refine: optimise the selected images until probes learn from them what they learn from real images.

Beyond the paper, which has 0 steps. Each class is refined by itself. An image starts as the selected
candidate or as a real medoid of its class. Draws are keyed by (seed, class, step), so a class has the same
bytes on any actor.
"""

from dataclasses import asdict, astuple
from itertools import pairwise
from typing import Any

import numpy as np

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.cluster.metrics_actor import Message, receive_metrics, start_metrics_actor
from ims3_ray.data.loader import payloads
from ims3_ray.method.refine import OBJECTIVES
from ims3_ray.progress import bar, hide_inner_bars
from ims3_ray.stages.base import (
    BACKWARD,
    KEY_BYTES,
    Cost,
    Forward,
    GpuUsage,
    Stage,
    classifier_bytes,
    classifier_operations,
    generator_bytes,
    pixel_bytes,
    png_bytes,
    pool_usage,
)
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.compare import Real, choose_baselines
from ims3_ray.stages.selected import REAL, SelectedCandidate, find_selected
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import part_names, read_index, read_rows

from .refinement import views_of
from .worker import ClassPayload, RefineInput, Refiner


def run(
    context: Context,
    out: Directory,
    features: Directory,
    probes: Directory | None = None,
    selection: Directory | None = None,
    candidates: Directory | None = None,
) -> dict[str, Any]:
    """Write one part per class; report the number of images that kept their start, and the loss history."""
    board, steps = start_metrics_actor(), context.config.refine.steps
    inputs = RefineInput(
        config=context.config,
        classes=context.classes,
        numerics=context.numerics,
        images=context.images["train"].directory,
        probes=probes,
        candidates=candidates,
        tiles=context.tiles,
        image_size=context.image_size,
        stored_size=context.stored_size,
        features=read_index(features, schemas.FEATURES, ["label"]),
    )
    arguments = {"inputs": inputs, "board": board, "batch_size": context.batch_size(context.config.refine)}
    payloads_of = class_payloads(context, features, selection, candidates)
    parts = [Part(payload["label"], len(payload["selected"]), payload) for payload in payloads_of]
    done = len(part_names(out)) * steps
    with hide_inner_bars(bar("refine", len(parts) * steps, "steps", done=done)) as progress_bar:

        def receive(message: Message) -> None:
            losses = {name: f"{loss:.3g}" for name, loss in message["metrics"].items()}
            progress_bar.set_postfix(losses, refresh=False)
            progress_bar.update(min(message["step"], len(parts) * steps - progress_bar.n))

        options = {"table": schemas.REFINED, "out": out, "machine": context.machine}
        with receive_metrics(board, receive):
            details = fan_out(Refiner, arguments, parts, stage="refine", **options)
    rows = read_rows(out, schemas.REFINED, ["kept", "loss"])
    losses = rows["loss"].mean(axis=0).tolist()
    history = [
        {"step": round((i + 1) * steps / len(losses)), "matching": loss} for i, loss in enumerate(losses)
    ]
    for entry in history:
        context.on_metrics("refine", entry["step"], {"refine/matching": entry["matching"]})
    return details | {"kept_starts": int(rows["kept"].sum()), "history": history}


def class_payloads(
    context: Context, features: Directory, selection: Directory | None, candidates: Directory | None
) -> list[ClassPayload]:
    """Return per class the images to refine and the training images."""
    train = context.images["train"]
    if selection and candidates:
        images = find_selected(candidates, selection, context.classes)
    else:
        images = _medoids(context, features)
    selected: list[list[tuple[Any, ...]]] = [[] for _ in context.classes]
    for image in images:
        selected[image.label].append(astuple(image))
    first = np.searchsorted(train.labels, np.arange(len(selected) + 1)).tolist()
    by_class = []
    for label, (start, stop) in enumerate(pairwise(first)):
        (real,) = payloads(train, range(start, stop), stop - start)
        by_class.append(ClassPayload(label=label, real=real, selected=selected[label]))
    return by_class


def _medoids(context: Context, features: Directory) -> list[SelectedCandidate]:
    """Return the real medoids by class; `index` and `row` count the class's training images."""
    train, seed, ipc = context.images["train"], context.config.seed, context.config.unpacked_ipc
    real = Real.by_id(train, read_index(features, schemas.FEATURES, ["image_id", "label"]))
    sizes = [[ipc] * len(context.classes)]
    rows = choose_baselines(real, ["medoids"], sizes, [seed])["medoids", seed].image_rows
    first = np.searchsorted(train.labels, np.arange(len(context.classes)))
    medoids = []
    for place, row in enumerate(rows.tolist()):
        label = int(train.labels[row])
        index = row - int(first[label])
        medoids.append(SelectedCandidate(label, place % ipc, REAL, index, REAL, train.paths[row], index))
    return medoids


def _fingerprint_inputs(context: Context) -> object:
    config = context.config
    settings, generator = context.values_of(config.refine), context.generator_values()
    rules = [kind.model_dump(mode="json") for kind in context.probe_kinds]
    shared = [config.seed, list(context.classes), config.unpacked_ipc, context.inputs["extractor"], rules]
    tiles = [asdict(context.tiles)] if context.tiles else []
    if context.generator is None:
        tiles.append({"stored_size": context.stored_size})
    return [settings, shared, generator["model"], generator["numerics"], *tiles]


def step_operations(context: Context, forward: Forward) -> float:
    """Return operations per step and image: decoding, its views through a probe, and the gradient."""
    settings = context.config.refine
    decode = forward.decode * BACKWARD if settings.space == "latent" else 0.0
    passes = BACKWARD * (1 + OBJECTIVES[settings.objective].second_order)
    return decode + views_of(settings, context.probe_kinds[0]) * passes * _probe_operations(context)


def _probe_operations(context: Context) -> float:
    kinds = context.probe_kinds
    return sum(classifier_operations(rules, len(context.classes)) for rules in kinds) / len(kinds)


def _cost(context: Context, forward: Forward) -> Cost:
    """Cost of the steps, and of the targets: one per probe and class, or one per step."""
    config, rows = context.config, context.config.unpacked_ipc * len(context.classes)
    kinds = context.probe_kinds
    probes = config.probe.count * len(config.probe.checkpoint_steps) * len(kinds)
    limit, times = config.refine.real_images, probes
    if config.refine.real_batch:
        limit, times = config.refine.real_batch, config.refine.steps
    measured = int(np.minimum(context.images["train"].counts(), limit or 10**9).sum())
    passes = BACKWARD if OBJECTIVES[config.refine.objective].second_order else 1
    targets = measured * times * passes * _probe_operations(context) / rows
    operations = config.refine.steps * step_operations(context, forward) + targets
    of_class = pixel_bytes(int(context.images["train"].counts().max()), kinds[0].image_size)
    weights = sum(classifier_bytes(rules, len(context.classes)) for rules in kinds) / len(kinds)
    memory = probes * weights + 2 * of_class
    memory += generator_bytes(context) if config.refine.space == "latent" else 0
    keys = KEY_BYTES * (len(context.images["train"]) + context.num_candidates)
    return Cost(rows, operations, disk=2 * rows * png_bytes(context), memory=memory, driver=keys)


def _use(context: Context) -> GpuUsage:
    """A class is a part."""
    ipc = context.config.unpacked_ipc
    return pool_usage(context, ipc * len(context.classes), ipc)


STAGE = Stage(
    name="refine",
    output="refined",
    version=4,
    inputs=("features", "probes", "selection", "candidates"),
    is_enabled=lambda context: context.config.refine.steps > 0,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=_use,
    metrics=lambda out: {
        "refine/kept_starts": float(read_index(out, schemas.REFINED, ["kept"]).keys["kept"].sum())
    },
)
