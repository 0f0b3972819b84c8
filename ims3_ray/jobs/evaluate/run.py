"""Anybody's image sets, scored as a distilled one is: classifiers, real images beside them, audit."""

import io
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from PIL import Image

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.cluster.resources import Machine
from ims3_ray.config.settings import Evaluating
from ims3_ray.data.folders import READERS
from ims3_ray.data.images import ImageSet, open_labelled
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.evaluation.audit import Audit, AuditedImages, audit
from ims3_ray.evaluation.protocols import NO_PROTOCOL, Protocol, protocols
from ims3_ray.evaluation.results import NAMES, Evaluation
from ims3_ray.evaluation.statistics import augmentation_robust_score
from ims3_ray.models.extractor import inspect_extractor, load_extractor
from ims3_ray.pipeline.inputs import check_splits, image_places
from ims3_ray.pipeline.prepare import content_of, open_splits, pinned
from ims3_ray.stages.embed import embed_images
from ims3_ray.stages.evaluate import compare
from ims3_ray.stages.evaluate.classifiers import check_networks, classifier_seeds
from ims3_ray.stages.evaluate.teacher import check_settings, teacher_of
from ims3_ray.storage.artifacts import Directory, open_storage
from ims3_ray.storage.rows import Index

RESERVED = set(NAMES) - {"pool"}  # names of what stands beside the given sets


@dataclass(frozen=True)
class Prepared:
    """What is scored, checked: nothing heavy has run."""

    config: Evaluating
    storage: Directory
    networks: list[Protocol]
    train: ImageSet
    scored: ImageSet
    given: dict[str, ImageSet]  # by name
    side: int  # pixels at which φ sees all images
    extractor_hash: str
    warnings: list[str]


class Given(TypedDict):
    """A set that was given."""

    location: str
    fingerprint: str
    images: int
    per_class: dict[str, int]
    bad_images: dict[str, str]


class Scored(Evaluation):
    """evaluation.json: as a run's own, and what tells of the sets that were given."""

    audit: Audit
    given: dict[str, Given]
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    hardware: Mapping[str, object]


def prepare(config: Evaluating, locations: Mapping[str, str], *, plain: bool = False) -> Prepared:
    """Open and check the sets at `locations` (by name), the training and the scored images.

    `plain` scores without augmentation, too, by the first network.

    InputError, in one line, for whatever a person must mend first.
    """
    if config.evaluate.protocol == NO_PROTOCOL:
        raise InputError(
            "evaluate.protocol: none scores nothing; name a protocol, such as evaluate.protocol=minimax"
        )
    if odd := RESERVED & set(locations):
        raise InputError(
            f"--set: the name {min(odd)!r} is that of a baseline; choose another, such as --set mine=PLACE"
        )
    networks = protocols(config.evaluate.protocol, config.evaluate.networks)
    check_settings(config.evaluate, trains=False)
    if plain:
        networks = [*networks, _without_augmentation(networks[0], config.evaluate.baselines)]
    places, config = image_places(config), pinned(config)
    inspect_extractor(config.embed.extractor)
    storage = open_storage(config.storage)
    images = open_splits(places, config.data, config.seed, storage)
    train, scored = images["train"], images[networks[0].split]
    check_networks(networks, len(train.classes))
    shared = {"seed": config.seed, "max_bad_fraction": config.data.max_bad_fraction}
    shared |= {"scored_classes": scored.classes, "label_names": scored.label_names}
    given = {
        name: open_labelled(place, storage, name=f"--set {name}", **shared)
        for name, place in locations.items()
    }
    _check_counts(config, train, given)
    return Prepared(
        config,
        storage,
        networks,
        train,
        scored,
        given,
        max(side(of_set, networks[0].image_size) for of_set in given.values()),
        content_of(config.embed.extractor, storage),
        check_splits(images, config.data.max_overlap_fraction),
    )


def score(prepared: Prepared, machine: Machine, *, trust_labels: bool = False) -> Scored:
    """Audit, classifiers and coverage of the given sets.

    InputError, before any classifier trains, for a set whose classes look swapped, unless labels are trusted.
    """
    config, train, given, networks = prepared.config, prepared.train, prepared.given, prepared.networks
    seeds = classifier_seeds(config.seed, config.evaluate.seeds)
    load_extractor(
        config.embed.extractor
    )  # InputError here, where it is caught, for weights that can't be had
    audited, vectors = _embed(prepared, machine)
    findings = audit([audited[name] for name in ("train", "scored", *given)], train.classes)
    findings["warnings"] = list(dict.fromkeys(prepared.warnings + findings["warnings"]))
    if not trust_labels:
        _refuse_swapped(findings, given)
    real = compare.Real(train, train.paths, audited["train"].paths, vectors["train"])
    sizes = [of_set.counts().tolist() for of_set in given.values()]
    choices = compare.choose(real, config.evaluate.baselines, sizes, seeds, config.evaluate.random_subsets)
    counts = {count for of_set in sizes for count in of_set}
    has_ceiling = len(counts) == 1 and max(counts) <= np.bincount(real.vectors.labels).min()
    coverage = compare.cover(
        {name: vectors[name] for name in given},
        choices,
        real,
        seeds[0],
        config.evaluate.neighbours,
        counts.pop() if has_ceiling else None,
    )
    sets = compare.training_sets(given, choices, train, seeds, config.evaluate.full)
    teacher = teacher_of(config.evaluate, train, None, machine)
    asked = compare.asked_about(prepared.scored, train, config.evaluate.membership_images)
    document = compare.score(sets, given, asked, networks, machine, teacher=teacher)
    document["coverage"] = coverage
    _rate_augmentation(document, networks[0], given)
    return {
        **document,
        "audit": findings,
        "given": {name: _described(of_set) for name, of_set in given.items()},
        "settings": config.model_dump(mode="json", exclude={"workers", "storage"}),
        "versions": versions(),
        "hardware": hardware(machine),
    }


def _without_augmentation(rules: Protocol, baselines: Collection[str]) -> Protocol:
    if rules.plain.augmentations == rules.augmentations and not rules.cutmix:
        raise InputError(f"--augmentation-robust: protocol {rules.name} augments nothing; take one that does")
    if "random" not in baselines:
        raise InputError(
            "--augmentation-robust: compares with random real images; add random to evaluate.baselines"
        )
    return rules.plain


def _rate_augmentation(document: Evaluation, rules: Protocol, given: Collection[str]) -> None:
    """Add DD-Ranking's score of every set that was scored without augmentation, too."""
    augmented, plain = document["sets"], document.get("networks", {}).get(rules.plain.label)
    for name in given if plain else ():
        random = "random" if "random" in augmented else f"random {augmented[name]['images']}"
        pairs = [
            (sets[name]["last"]["mean"], sets[random]["last"]["mean"]) for sets in (augmented, plain or {})
        ]
        augmented[name]["augmentation_robust_score"] = augmentation_robust_score(*pairs)


def side(images: ImageSet, image_size: int) -> int:
    """Pixels a side at which φ sees a set: its own where all are equal squares, else the protocol's."""

    def dimensions(path: str) -> tuple[int, int]:
        with Image.open(io.BytesIO(images.directory.read(path))) as image:
            return image.size

    with ThreadPoolExecutor(READERS) as pool:
        sizes = set(pool.map(dimensions, images.paths))
    width, height = next(iter(sizes))
    return width if len(sizes) == 1 and width == height and width <= 2 * image_size else image_size


def _check_counts(config: Evaluating, train: ImageSet, given: Mapping[str, ImageSet]) -> None:
    counts, neighbours = train.counts(), config.evaluate.neighbours
    smallest = int(counts.argmin())
    if counts[smallest] <= neighbours:
        raise InputError(
            f"data.train: class {train.classes[smallest]!r} has {counts[smallest]} images, "
            f"evaluate.neighbours={neighbours} needs one more; add images or lower it"
        )
    coresets = [name for name in config.evaluate.baselines if name != "random"]
    for name, of_set in given.items():
        own = of_set.counts()
        if (short := np.flatnonzero(own > counts)).size and config.evaluate.baselines:
            label = short[0]
            raise InputError(
                f"--set {name}: has {own[label]} images of class {train.classes[label]!r}, data.train "
                f"{counts[label]}: too few for baselines of the same number; use evaluate.baselines=[]"
            )
        if coresets and len(set(own.tolist())) > 1:
            raise InputError(
                f"evaluate.baselines: {', '.join(coresets)} choose as many images of every class, but --set "
                f"{name} has different numbers; use evaluate.baselines=[random]"
            )


def _refuse_swapped(findings: Audit, given: Collection[str]) -> None:
    """A teacher's or generator's order of classes is the commonest reason for a number far too low.

    A single class that looks like another is a poor one: to swap takes two.
    """
    for name in given:
        order = findings["classes"][name]
        likes = order["looks_like"]
        if swapped := {ours: theirs for ours, theirs in likes.items() if theirs in likes}:
            pairs = first_few((f"{ours!r} like {theirs!r}" for ours, theirs in swapped.items()), 3, str)
            raise InputError(
                f"--set {name}: {len(swapped)} of {len(order['per_class'])} classes look swapped: images of "
                f"{pairs}; number the classes as data.train does, or give --trust-labels"
            )


def _embed(prepared: Prepared, machine: Machine) -> tuple[dict[str, AuditedImages], dict[str, Index]]:
    """Every set, the training images as "train" and the scored ones as "scored", all at one size."""
    split, size = prepared.networks[0].split, prepared.side
    named = {"train": ("data.train", prepared.train), "scored": (f"data.{split}", prepared.scored)}
    named |= {name: (name, of_set) for name, of_set in prepared.given.items()}
    config, extractor, storage = prepared.config, prepared.extractor_hash, prepared.storage
    embedded = {
        key: embed_images(name, images, size, config, extractor, storage, machine)
        for key, (name, images) in named.items()
    }
    return {key: images for key, (images, _) in embedded.items()}, {
        key: index for key, (_, index) in embedded.items()
    }


def _described(images: ImageSet) -> Given:
    return {
        "location": images.place,
        "fingerprint": images.fingerprint,
        "images": len(images),
        "per_class": dict(zip(images.classes, images.counts().tolist(), strict=True)),
        "bad_images": dict(images.bad),
    }
