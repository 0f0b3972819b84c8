"""The evaluate stage: score the distilled set beside baselines of real images, and measure its coverage.

Classifiers train on the distilled set, on baselines of as many real images and, if asked, on the full set,
over the same seeds. Coverage is measured in feature space, for the baselines and the ceiling too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ims3_ray.config.settings import Config
from ims3_ray.data.distilled import list_images
from ims3_ray.data.images import ImageSet, ParquetRows, Tiles
from ims3_ray.data.loader import pixels_bytes
from ims3_ray.evaluation.protocols import NO_PROTOCOL, Protocol, get_protocol, get_protocols
from ims3_ray.evaluation.results import CURVE, headline_metrics, set_title
from ims3_ray.stages.base import (
    BACKWARD,
    KEY_BYTES,
    Cost,
    Forward,
    GpuUsage,
    Stage,
    classifier_operations,
    classifier_usage,
)
from ims3_ray.stages.context import Context
from ims3_ray.stages.selected import KEYS, selected_rows
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import Index, read_index

from .baselines import SEEDED
from .classifiers import SCORES, classifier_seeds, images_seen, train_all
from .compare import FULL_SEEDS, Real, choose_baselines, cover, describe, training_sets
from .stored_size import stored_sizes
from .teacher import is_soft, teacher_of


def run(context: Context, out: Directory, **inputs: Directory) -> dict[str, Any]:
    """Write evaluation.json: last and best accuracies per network and set with intervals; coverage."""
    config, train = context.config, context.images["train"]
    settings, protocols = config.evaluate, _protocols(config)
    seeds = classifier_seeds(config.seed, settings.seeds)
    index = read_index(inputs["features"], schemas.FEATURES, ["image_id", "label"])
    real = Real.by_id(train, index)
    ipc, tiles = config.unpacked_ipc, context.tiles
    sizes = [[ipc] * len(train.classes)]
    names = dict.fromkeys(("random", *settings.baselines))
    baselines = choose_baselines(real, names, sizes, seeds, settings.random_subsets)
    features = _own_features(context, inputs)
    whole = {} if tiles else baselines  # features are of whole images, a packed baseline's are not known
    coverage = cover(features, whole, real, seeds[0], settings.neighbours, ipc)
    own = {"distilled": list_images(inputs["distilled"], train.classes, tiles)}
    if "unrefined" in own_names(config):
        own["unrefined"] = unrefined_images(inputs["refined"], train.classes, tiles)
    trained = {key: baseline for key, baseline in baselines.items() if key[0] in settings.baselines}
    sets = training_sets(own, trained, train, seeds, settings.full, tiles)
    curve = MeanCurve(
        protocols[0].label,
        "distilled",
        seeds,
        lambda step, mean: context.on_metrics("evaluate", step, {CURVE: mean}),
    )
    teacher = teacher_of(settings, train, inputs.get("teacher"), context.machine)
    scored = context.images[protocols[0].split]
    kept = sum(name.startswith(f"{SCORES}/") for name in out.files())
    source = teacher and teacher.source
    scores = train_all(sets, scored, protocols, context.machine, curve, source, out)
    document = describe(scores, own, protocols, teacher)
    document["coverage"], document["names"] = coverage, set_names(config, baselines)
    if tiles:
        document["packing"] = tiles.factor
    stored = {name: of_set for (name, _), of_set in sets.items() if name != "full"}
    for name, size in stored_sizes(stored, own, context.stored_size, protocols[0], config.packing).items():
        document["sets"][name]["stored"] = size
    out.write_json("evaluation.json", {**document, "ipc": config.ipc})
    rows = len(sets) * len(protocols)
    return {"rows": rows, "rows_made": rows - kept}


def _protocols(config: Config) -> list[Protocol]:
    return get_protocols(config.evaluate.protocol, config.evaluate.networks)


def _own_features(context: Context, inputs: Mapping[str, Directory]) -> dict[str, Index]:
    """Features of the distilled set, of its images before refinement and, if asked, of the pool's first."""
    sets: dict[str, Index] = {}
    if "selection" in inputs:
        pool = read_index(inputs["candidates"], schemas.CANDIDATES, KEYS)
        sets["distilled"] = selected_rows(pool, inputs["selection"], context.classes)
        if count := context.config.evaluate.pool_images:
            sets["pool"] = pool.take(first_of_pool(pool.keys, count))
    if "refined" in inputs:
        index = read_index(inputs["refined"], schemas.REFINED, ["label"])
        sets["distilled"], sets["unrefined"] = index, replace(index, column="start_feature")
    return sets


def own_names(config: Config) -> list[str]:
    """The run's own sets on which classifiers train: "distilled" and, if asked, "unrefined"."""
    is_refined = config.evaluate.unrefined and config.refine.steps > 0
    return ["distilled", "unrefined"] if is_refined else ["distilled"]


def unrefined_images(refined: Directory, classes: Sequence[str], tiles: Tiles | None = None) -> ImageSet:
    """The selected images before refinement, which the refined artefact keeps; `tiles` of a packed set."""
    index = read_index(refined, schemas.REFINED, ["label", "place"])
    labels = index.keys["label"].astype(np.int64)
    names = tuple(f"{refined.name}/{label}/{k}" for label, k in zip(labels, index.keys["place"], strict=True))
    parquet, reduced = ParquetRows(index.files, "start"), tiles and Tiles(1, tiles.side)
    return ImageSet(refined, tuple(classes), names, labels, names, parquet=parquet, tiles=reduced)


def set_names(config: Config, baselines: Iterable[tuple[str, int]] = ()) -> dict[str, str]:
    """Table names of the run's own sets: the method that made them, such as "IM + S³".

    The sets of a packed run are called so, and its `baselines`, which are packed likewise.
    """
    method = method_name(config)
    names = {"distilled": "refined", "unrefined": method} if config.refine.steps else {"distilled": method}
    if config.packing.factor == 1:
        return names
    names |= {name: set_title(name) for name, _ in baselines}
    return {name: f"{title}, packed" for name, title in names.items()}


def method_name(config: Config) -> str:
    """The method that draws and selects images, named as in the paper's ablation: "IM + S³"."""
    if not config.makes_candidates:
        return "k-means medoids"
    model = "DiT" if config.source == "generator" else "real"
    if config.is_tuned:
        matched = config.im.weight if config.im.grad_ratio is None else config.im.grad_ratio
        model = "IM" if matched else "Minimax" if config.im.minimax else "DiffFit"
    if config.select.unit == "image":
        return f"{model}, single images"
    is_selected = (config.select.subgroups or config.sample.subgroups) > 1
    return f"{model} + S³" if is_selected else model


def first_of_pool(keys: schemas.Columns, count: int) -> np.ndarray:
    """Rows of the first `count` candidates per class, ordered by subgroup and index."""
    order = np.lexsort((keys["index"], keys["subgroup"], keys["label"]))
    labels = keys["label"][order]
    place = np.arange(len(order)) - np.searchsorted(labels, labels)
    return order[place < count]


class MeanCurve:
    """Mean accuracy over seeds of one set and protocol, reported once all seeds have reached a step."""

    def __init__(self, label: str, name: str, seeds: Sequence[int], report: Callable[[int, float], None]):
        """`report(step, mean)` is called with ascending steps."""
        self._key, self._seeds, self._report = (label, name), set(seeds), report
        self._at: dict[int, dict[int, float]] = {}
        self._last_step = 0

    def __call__(self, label: str, name: str, seed: int, step: int, accuracy: float) -> None:
        if (label, name) != self._key:
            return
        self._at.setdefault(step, {})[seed] = accuracy
        for complete in sorted(step for step, by_seed in self._at.items() if set(by_seed) == self._seeds):
            if complete > self._last_step:  # a restarted training repeats its earlier steps
                self._last_step = complete
                self._report(complete, sum(self._at[complete].values()) / len(self._seeds))


def _fingerprint_inputs(context: Context) -> object:
    config = context.config
    protocols = [protocol.model_dump(mode="json") for protocol in _protocols(config)]
    settings = config.evaluate.model_dump(mode="json", exclude={"teacher"})  # its content counts
    inputs = [context.inputs.get("scored"), context.inputs.get("teacher")]
    return [settings, protocols, config.seed, config.unpacked_ipc, inputs, context.machine.device]


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    """Rows are the classifiers, on sets of different sizes; evaluations during training are not counted.

    A worker's memory holds the pixels that it maps; the classifiers of a node share these pages.
    """
    config, num_classes = context.config, len(context.classes)
    protocols, operations = _protocols(config), 0.0
    sizes = _set_sizes(context)
    for protocol in protocols:
        seen = sum(images_seen(protocol, images, num_classes) for images in sizes)
        passes = BACKWARD + is_soft(config.evaluate)  # a teacher's pass takes about as long as a student's
        operations += seen * passes * classifier_operations(protocol, num_classes)
    count, train = len(sizes) * len(protocols), len(context.images["train"])
    scored, size = len(context.images[protocols[0].split]), protocols[0].image_size
    worker = pixels_bytes(scored + max(sizes), size)
    driver = KEY_BYTES * (train + context.num_candidates)
    return Cost(count, operations / count, disk=1e5, memory=worker, driver=driver)


def _gpu_usage(context: Context) -> GpuUsage:
    return classifier_usage(context, len(_set_sizes(context)) * len(_protocols(context.config)))


def _set_sizes(context: Context) -> list[int]:
    """Number of training images of each classifier of one network."""
    config, settings = context.config, context.config.evaluate
    names = {*own_names(config), *settings.baselines}
    more_draws = max(0, (settings.random_subsets or 0) - settings.seeds) if "random" in names else 0
    sizes = [config.unpacked_ipc * len(context.classes)] * (len(names) * settings.seeds + more_draws)
    full = [len(context.images["train"])] * min(settings.seeds, FULL_SEEDS)
    return sizes + (full if settings.full else [])


def _node_disk(context: Context) -> float:
    """Bytes of the scored images and, at most, of every training set."""
    config, protocol = context.config, get_protocol(context.config.evaluate.protocol)
    settings = config.evaluate
    chosen = sum(
        max(settings.seeds, settings.random_subsets or 0) if n in SEEDED else 1 for n in settings.baselines
    )
    sets = len(own_names(config)) + chosen
    images = len(context.images[protocol.split]) + config.unpacked_ipc * len(context.classes) * sets
    images += len(context.images["train"]) if settings.full else 0
    return pixels_bytes(images, protocol.image_size)


STAGE = Stage(
    name="evaluate",
    output="evaluation",
    version=10,
    inputs=("distilled", "selection", "candidates", "features", "refined", "teacher"),
    unit="classifiers",
    is_enabled=lambda context: context.config.evaluate.protocol != NO_PROTOCOL,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=_gpu_usage,
    node_disk=_node_disk,
    metrics=lambda out: headline_metrics(out.read_json("evaluation.json")),
)
