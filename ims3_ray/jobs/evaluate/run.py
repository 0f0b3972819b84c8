"""Evaluate image sets from outside: audit, classifiers, baselines of real images, coverage."""

import io
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from PIL import Image

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.cluster.resources import Machine, check_device, connect, find_machine, has_address
from ims3_ray.config.settings import Evaluating
from ims3_ray.data.folders import READERS
from ims3_ray.data.images import ImageSet, open_labelled
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.evaluation.audit import Audit, AuditedImages, audit
from ims3_ray.evaluation.protocols import NO_PROTOCOL, Protocol, get_protocols
from ims3_ray.evaluation.results import SET_TITLES, Evaluation
from ims3_ray.evaluation.statistics import augmentation_robust_score
from ims3_ray.models.extractor import inspect_extractor, load_extractor
from ims3_ray.pipeline.inputs import check_splits, image_places
from ims3_ray.pipeline.prepare import content_of, open_splits, pinned
from ims3_ray.progress import spinner
from ims3_ray.stages.embed import embed_images
from ims3_ray.stages.evaluate import compare
from ims3_ray.stages.evaluate.classifiers import check_networks, classifier_seeds, train_all
from ims3_ray.stages.evaluate.teacher import check_settings, teacher_of
from ims3_ray.storage.artifacts import Directory, open_storage
from ims3_ray.storage.rows import Index

RESERVED = set(SET_TITLES) - {"pool"}  # names of baselines
TRAIN, SCORED = "/train", "/scored"  # no set is named so


@dataclass(frozen=True)
class Prepared:
    """A checked evaluation, before any heavy work."""

    config: Evaluating
    storage: Directory
    protocols: list[Protocol]
    train: ImageSet
    scored: ImageSet
    sets: dict[str, ImageSet]  # by name
    side: int  # pixels per side at which the extractor sees all images
    extractor_hash: str
    warnings: list[str]


class SetInfo(TypedDict):
    """An evaluated set."""

    location: str
    fingerprint: str
    images: int
    per_class: dict[str, int]
    bad_images: dict[str, str]


class Scored(Evaluation):
    """evaluation.json: as a run's, with the audit, the sets, and the conditions."""

    audit: Audit
    given: dict[str, SetInfo]
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    hardware: Mapping[str, object]


def evaluate(
    config: Evaluating,
    locations: Mapping[str, str],
    *,
    plain: bool = False,
    trust_labels: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> Scored:
    """Check the sets at `locations` (by name), join or start a cluster, and score.

    `ready()` is called after the checks, before a cluster starts. The options are those of `prepare` and
    `score`.
    """
    check_device(config.workers)
    with spinner("start"):
        if has_address():  # the cluster's nodes inspect the images
            connect()
        prepared = prepare(config, locations, plain=plain)
        ready()
        connect(config.workers)
    return score(prepared, find_machine(config.workers), trust_labels=trust_labels)


def prepare(config: Evaluating, locations: Mapping[str, str], *, plain: bool = False) -> Prepared:
    """Open and check the sets at `locations` (by name), the training images and the scored images.

    `plain` also scores the first network without augmentation. Raises InputError for the first problem.
    """
    settings = config.evaluate
    if settings.protocol == NO_PROTOCOL:
        raise InputError(
            "evaluate.protocol: none scores nothing; name a protocol, such as evaluate.protocol=minimax"
        )
    if reserved := RESERVED & set(locations):
        raise InputError(
            f"--set: {min(reserved)!r} is the name of a baseline; choose another, such as --set mine=PLACE"
        )
    protocols = get_protocols(settings.protocol, settings.networks)
    check_settings(settings, trains=False)
    if plain:
        protocols = [*protocols, _without_augmentation(protocols[0], settings.baselines)]
    places, config = image_places(config), pinned(config)
    inspect_extractor(config.embed.extractor)
    storage = open_storage(config.storage)
    images = open_splits(places, config.data, config.seed, storage)
    train, scored = images["train"], images[protocols[0].split]
    check_networks(protocols, len(train.classes))
    shared = {"seed": config.seed, "max_bad_fraction": config.data.max_bad_fraction}
    shared |= {"scored_classes": scored.classes, "label_names": scored.label_names}
    sets = {
        name: open_labelled(place, storage, name=f"--set {name}", **shared)
        for name, place in locations.items()
    }
    _check_counts(config, train, sets)
    named = {f"data.{name}": each for name, each in images.items()}
    named |= {f"--set {name}": each for name, each in sets.items()}
    return Prepared(
        config,
        storage,
        protocols,
        train,
        scored,
        sets,
        max(embed_side(of_set, protocols[0].image_size) for of_set in sets.values()),
        content_of(config.embed.extractor, storage),
        [line for name, each in named.items() for line in each.skipped(name)]
        + check_splits(images, config.data.max_overlap_fraction),
    )


def score(prepared: Prepared, machine: Machine, *, trust_labels: bool = False) -> Scored:
    """Audit the sets, train and score classifiers, and measure coverage.

    Raises InputError, before any training, if a set's classes look swapped, unless `trust_labels`.
    """
    config, train, own, protocols = prepared.config, prepared.train, prepared.sets, prepared.protocols
    settings, seeds = config.evaluate, classifier_seeds(config.seed, config.evaluate.seeds)
    load_extractor(config.embed.extractor)  # missing weights raise InputError here, not in a task
    audited, features = _embed(prepared, machine)
    findings = audit([audited[name] for name in (TRAIN, SCORED, *own)], train.classes)
    findings["warnings"] = list(dict.fromkeys(prepared.warnings + findings["warnings"]))
    if not trust_labels:
        _check_swapped(findings, own)
    real = compare.Real(train, train.paths, audited[TRAIN].paths, features[TRAIN])
    sizes = [of_set.counts().tolist() for of_set in own.values()]
    baselines = compare.choose_baselines(real, settings.baselines, sizes, seeds, settings.random_subsets)
    counts = {count for of_set in sizes for count in of_set}
    has_ceiling = len(counts) == 1 and max(counts) <= np.bincount(real.features.labels).min()
    coverage = compare.cover(
        {name: features[name] for name in own},
        baselines,
        real,
        seeds[0],
        settings.neighbours,
        counts.pop() if has_ceiling else None,
    )
    sets = compare.training_sets(own, baselines, train, seeds, settings.full)
    teacher = teacher_of(settings, train, None, machine)
    scores = train_all(sets, prepared.scored, protocols, machine, teacher=teacher and teacher.source)
    document = compare.describe(scores, own, protocols, teacher)
    document["coverage"] = coverage
    _add_robust_scores(document, protocols[0], own)
    return {
        **document,
        "audit": findings,
        "given": {name: _set_info(of_set) for name, of_set in own.items()},
        "settings": config.model_dump(mode="json", exclude={"workers", "storage"}),
        "versions": versions(),
        "hardware": hardware(machine),
    }


def _without_augmentation(protocol: Protocol, baselines: Collection[str]) -> Protocol:
    if protocol.plain.augmentations == protocol.augmentations and not protocol.cutmix:
        raise InputError(f"--augmentation-robust: protocol {protocol.name} has no augmentation; take another")
    if "random" not in baselines:
        raise InputError(
            "--augmentation-robust: compares with random real images; add random to evaluate.baselines"
        )
    return protocol.plain


def _add_robust_scores(document: Evaluation, protocol: Protocol, own: Collection[str]) -> None:
    """Add DD-Ranking's augmentation-robust score to every set that was also scored without augmentation."""
    augmented, plain = document["sets"], document.get("networks", {}).get(protocol.plain.label)
    for name in own if plain else ():
        random = "random" if "random" in augmented else f"random {augmented[name]['images']}"
        pairs = [
            (sets[name]["last"]["mean"], sets[random]["last"]["mean"]) for sets in (augmented, plain or {})
        ]
        augmented[name]["augmentation_robust_score"] = augmentation_robust_score(*pairs)


def embed_side(images: ImageSet, image_size: int) -> int:
    """Side for embedding in pixels: the images' if all are squares of at most 2 · `image_size`, else that."""

    def dimensions(path: str) -> tuple[int, int]:
        with Image.open(io.BytesIO(images.directory.read(path))) as image:
            return image.size

    with ThreadPoolExecutor(READERS) as pool:
        sizes = set(pool.map(dimensions, images.paths))
    width, height = next(iter(sizes))
    return width if len(sizes) == 1 and width == height and width <= 2 * image_size else image_size


def _check_counts(config: Evaluating, train: ImageSet, sets: Mapping[str, ImageSet]) -> None:
    counts, neighbours, baselines = train.counts(), config.evaluate.neighbours, config.evaluate.baselines
    smallest = int(counts.argmin())
    if counts[smallest] <= neighbours:
        raise InputError(
            f"data.train: class {train.classes[smallest]!r} has {counts[smallest]} images, "
            f"evaluate.neighbours={neighbours} needs one more; add images or lower it"
        )
    coresets, by_total = [name for name in baselines if name != "random"], dict[int, list[int]]()
    for name, of_set in sets.items():
        own = of_set.counts()
        if baselines and by_total.setdefault(len(of_set), own.tolist()) != own.tolist():
            raise InputError(f"--set {name}: as large as another set, by other classes; evaluate it alone")
        if baselines and (larger := np.flatnonzero(own > counts)).size:
            label = larger[0]
            raise InputError(
                f"--set {name}: has {own[label]} images of class {train.classes[label]!r}, data.train "
                f"{counts[label]}: too few for baselines of the same size; use evaluate.baselines=[]"
            )
        if coresets and len(set(own.tolist())) > 1:
            raise InputError(
                f"evaluate.baselines: {', '.join(coresets)} need as many images of every class, but --set "
                f"{name} has different numbers; use evaluate.baselines=[random]"
            )


def _check_swapped(findings: Audit, names: Collection[str]) -> None:
    """Raise InputError if two or more classes look swapped; a single one is a poor class.

    Another class order is the most frequent reason for an accuracy far too low.
    """
    for name in names:
        order = findings["classes"][name]
        looks_like = order["looks_like"]
        if swapped := {ours: theirs for ours, theirs in looks_like.items() if theirs in looks_like}:
            pairs = first_few((f"{ours!r} like {theirs!r}" for ours, theirs in swapped.items()), 3, str)
            raise InputError(
                f"--set {name}: {len(swapped)} of {len(order['per_class'])} classes look swapped: images of "
                f"{pairs}; number the classes as data.train does, or give --trust-labels"
            )


def _embed(prepared: Prepared, machine: Machine) -> tuple[dict[str, AuditedImages], dict[str, Index]]:
    """Embed TRAIN, SCORED and every set at one size."""
    sets = {TRAIN: ("data.train", prepared.train)}
    sets[SCORED] = (f"data.{prepared.protocols[0].split}", prepared.scored)
    sets |= {name: (name, of_set) for name, of_set in prepared.sets.items()}
    config, extractor, storage = prepared.config, prepared.extractor_hash, prepared.storage
    embedded = {
        key: embed_images(name, images, prepared.side, config, extractor, storage, machine)
        for key, (name, images) in sets.items()
    }
    audited = {key: images for key, (images, _) in embedded.items()}
    return audited, {key: index for key, (_, index) in embedded.items()}


def _set_info(images: ImageSet) -> SetInfo:
    return {
        "location": images.place,
        "fingerprint": images.fingerprint,
        "images": len(images),
        "per_class": dict(zip(images.classes, images.counts().tolist(), strict=True)),
        "bad_images": dict(images.bad),
    }
