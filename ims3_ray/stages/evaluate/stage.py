"""Score the distilled set. Reads it and the real images, makes an evaluation.

Classifiers are trained on the distilled set, on baselines of as many real images and, where asked, on the
full set, over the same seeds; coverage is measured in feature space beside the baselines', a random real
subset's and the ceiling's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ims3_ray.config.settings import Config
from ims3_ray.data.distilled import list_images
from ims3_ray.data.images import ImageSet, Packed
from ims3_ray.data.loader import pixels_bytes
from ims3_ray.evaluation.protocols import NO_PROTOCOL, protocol, protocols
from ims3_ray.evaluation.results import CURVE, headline
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
from .classifiers import classifier_seeds, images_seen
from .compare import FULL_SEEDS, Real, asked_about, choose, cover, score, training_sets
from .teacher import is_soft, teacher_of


def run(context: Context, out: Directory, **made: Directory) -> dict[str, Any]:
    """Write evaluation.json: by network and set last and best over the seeds, with intervals; coverage."""
    config, train = context.config, context.images["train"]
    networks = protocols(config.evaluate.protocol, config.evaluate.networks)
    seeds = classifier_seeds(config.seed, config.evaluate.seeds)
    index = read_index(made["features"], schemas.FEATURES, ["image_id", "label"])
    real = Real(train, train.ids, index.keys["image_id"].tolist(), index)
    asked, draws = config.evaluate.baselines, config.evaluate.random_subsets
    sizes = [[config.ipc] * len(train.classes)]
    choices = choose(real, dict.fromkeys(("random", *asked)), sizes, seeds, draws)
    drawn = _drawn(context, made["selection"], made["candidates"], made.get("refined"))
    coverage = cover(drawn, choices, real, seeds[0], config.evaluate.neighbours, config.ipc)
    own = {"distilled": list_images(made["distilled"], train.classes)}
    if "unrefined" in own_names(config):
        own["unrefined"] = unrefined_images(made["refined"], train.classes)
    asked_for = {key: choice for key, choice in choices.items() if key[0] in asked}
    sets = training_sets(own, asked_for, train, seeds, config.evaluate.full)
    curve = MeanCurve(
        networks[0].label,
        "distilled",
        seeds,
        lambda step, mean: context.on_metrics("evaluate", step, {CURVE: mean}),
    )
    learnt = teacher_of(config.evaluate, train, made.get("teacher"), context.machine)
    asked = asked_about(context.images[networks[0].split], train, config.evaluate.membership_images)
    document = score(sets, own, asked, networks, context.machine, curve, learnt)
    document["coverage"], document["names"] = coverage, set_names(config)
    out.write_json("evaluation.json", {**document, "ipc": config.ipc})
    return {"rows": len(sets) * len(networks)}


def _drawn(
    context: Context, selection: Directory, candidates: Directory, refined: Directory | None
) -> dict[str, Index]:
    """What the set was made of, before refinement and after, and, where asked, the first of the pool."""
    pool, count = read_index(candidates, schemas.CANDIDATES, KEYS), context.config.evaluate.pool_images
    sets: dict[str, Index] = {"distilled": selected_rows(pool, selection, context.classes)}
    if count:
        sets["pool"] = pool.take(first_of_pool(pool.keys, count))
    if refined:
        moved = read_index(refined, schemas.REFINED, ["label"])
        sets["distilled"], sets["unrefined"] = moved, replace(moved, column="start_feature")
    return sets


def own_names(config: Config) -> list[str]:
    """The run's own sets that classifiers train on: the distilled one, and the one before refinement."""
    is_refined = config.evaluate.unrefined and config.refine.steps > 0
    return ["distilled", "unrefined"] if is_refined else ["distilled"]


def unrefined_images(refined: Directory, classes: Sequence[str]) -> ImageSet:
    """The selected images before refinement, which the refined artefact keeps beside what came of them."""
    index = read_index(refined, schemas.REFINED, ["label", "place"])
    labels = index.keys["label"].astype(np.int64)
    names = tuple(f"{refined.name}/{label}/{k}" for label, k in zip(labels, index.keys["place"], strict=True))
    return ImageSet(refined, tuple(classes), names, labels, names, packed=Packed(index.files, "start"))


def set_names(config: Config) -> dict[str, str]:
    """How tables name the sets that the run made: by the method, "IM + S³" for the paper's."""
    method = method_name(config)
    return {"distilled": "refined", "unrefined": method} if config.refine.steps else {"distilled": method}


def method_name(config: Config) -> str:
    """The method that draws and selects images, by the rows of the paper's ablation: "IM + S³"."""
    if config.refine.steps and config.refine.start == "medoids":
        return "k-means medoids"
    model = "DiT"
    if config.finetune.epochs:
        matched = config.im.weight if config.im.grad_ratio is None else config.im.grad_ratio
        model = "IM" if matched else "Minimax" if config.im.minimax else "DiffFit"
    if config.select.unit == "image":
        return f"{model}, single images"
    is_selected = (config.select.subgroups or config.sample.subgroups) > 1
    return f"{model} + S³" if is_selected else model


def first_of_pool(drawn: schemas.Columns, count: int) -> np.ndarray:
    """Rows of the first `count` candidates a class, in the order of subgroup and index."""
    order = np.lexsort((drawn["index"], drawn["subgroup"], drawn["label"]))
    labels = drawn["label"][order]
    place = np.arange(len(order)) - np.searchsorted(labels, labels)
    return order[place < count]


class MeanCurve:
    """A set's accuracy while its classifiers train: the mean over seeds, once all are at a step."""

    def __init__(self, label: str, name: str, seeds: Sequence[int], tell: Callable[[int, float], None]):
        """Looks of the set `name` by the protocol `label` count; `tell(step, mean)` has ascending steps."""
        self._of, self._seeds, self._tell = (label, name), set(seeds), tell
        self._at: dict[int, dict[int, float]] = {}
        self._told = 0

    def __call__(self, label: str, name: str, seed: int, step: int, accuracy: float) -> None:
        if (label, name) != self._of:
            return
        self._at.setdefault(step, {})[seed] = accuracy
        for known in sorted(step for step, by_seed in self._at.items() if set(by_seed) == self._seeds):
            if known > self._told:  # a training that was begun anew says again what it said
                self._told = known
                self._tell(known, sum(self._at[known].values()) / len(self._seeds))


def _fingerprint_inputs(context: Context) -> object:
    config = context.config
    networks = protocols(config.evaluate.protocol, config.evaluate.networks)
    rules = [protocol.model_dump(mode="json") for protocol in networks]
    settings = config.evaluate.model_dump(mode="json", exclude={"teacher"})  # its content counts
    read = [context.inputs.get("scored"), context.inputs.get("teacher")]
    return [settings, rules, config.seed, config.ipc, read, context.machine.device]


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    """Rows are the classifiers to train, on sets of different sizes; looks are not counted.

    A worker's memory has the pixels that it maps, whose pages the classifiers of a node share.
    """
    config, num_classes = context.config, len(context.classes)
    networks, operations = protocols(config.evaluate.protocol, config.evaluate.networks), 0.0
    sizes = _set_sizes(context)
    for rules in networks:
        seen = sum(images_seen(rules, images, num_classes) for images in sizes)
        passes = BACKWARD + is_soft(config.evaluate)  # a teacher's is about as long as its student's
        operations += seen * passes * classifier_operations(rules, num_classes)
    count, train = len(sizes) * len(networks), len(context.images["train"])
    scored, size = len(context.images[networks[0].split]), networks[0].image_size
    worker = pixels_bytes(scored + max(sizes), size)
    driver = KEY_BYTES * (train + context.num_candidates)
    return Cost(count, operations / count, disk=1e5, memory=worker, driver=driver)


def _use(context: Context) -> GpuUsage:
    settings = context.config.evaluate
    networks = protocols(settings.protocol, settings.networks)
    return classifier_usage(context, len(_set_sizes(context)) * len(networks))


def _set_sizes(context: Context) -> list[int]:
    """Images of the set that each classifier of a network trains on."""
    config, settings = context.config, context.config.evaluate
    names = {*own_names(config), *settings.baselines}
    more_draws = max(0, (settings.random_subsets or 0) - settings.seeds) if "random" in names else 0
    sizes = [config.ipc * len(context.classes)] * (len(names) * settings.seeds + more_draws)
    full = [len(context.images["train"])] * min(settings.seeds, FULL_SEEDS)
    return sizes + (full if settings.full else [])


def _node_disk(context: Context) -> float:
    """For the scored images and, at most, every set that is trained on."""
    config, rules = context.config, protocol(context.config.evaluate.protocol)
    settings = config.evaluate
    chosen = sum(
        max(settings.seeds, settings.random_subsets or 0) if n in SEEDED else 1 for n in settings.baselines
    )
    sets = len(own_names(config)) + chosen
    images = len(context.images[rules.split]) + config.ipc * len(context.classes) * sets
    images += len(context.images["train"]) if settings.full else 0
    images += settings.membership_images
    return pixels_bytes(images, rules.image_size)


STAGE = Stage(
    name="evaluate",
    output="evaluation",
    version=7,
    inputs=("distilled", "selection", "candidates", "features", "refined", "teacher"),
    unit="classifiers",
    is_enabled=lambda context: context.config.evaluate.protocol != NO_PROTOCOL,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=_use,
    node_disk=_node_disk,
    metrics=lambda out: headline(out.read_json("evaluation.json")),
)
