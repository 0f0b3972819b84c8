"""Anybody's image sets, scored as a distilled one is: classifiers over seeds, real images beside them,
coverage, audit.
"""

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.cluster.machine import Machine
from ims3_ray.config.settings import Evaluating
from ims3_ray.data.images import READERS, ImageSet
from ims3_ray.data.labelled import open_labelled
from ims3_ray.errors import InputError
from ims3_ray.evaluation.audit import AuditedImages, audit
from ims3_ray.evaluation.protocols import NO_PROTOCOL, Protocol, protocols
from ims3_ray.evaluation.robustness import label_robust_score
from ims3_ray.models.extractor import inspect_extractor, load_extractor
from ims3_ray.pipeline.prepare import image_places, open_splits
from ims3_ray.pipeline.splits import check_splits
from ims3_ray.stages.embedding import embed_images
from ims3_ray.stages.evaluate.baselines import (
    CORESETS,
    COVERAGE,
    SEEDED,
    Vectors,
    ceiling,
    choose_all,
    measure_all,
)
from ims3_ray.stages.evaluate.classifiers import (
    Sets,
    check_networks,
    classifier_seeds,
    read_pixels,
    summarise,
    train_all,
)
from ims3_ray.storage.artifacts import Directory, open_storage
from ims3_ray.storage.hashing import content_hash

RESERVED = {"random", *CORESETS, "full", "ceiling"}  # names of what stands beside the given sets


@dataclass(frozen=True)
class Prepared:
    """What is scored, checked: nothing heavy has run."""

    config: Evaluating
    storage: Directory
    networks: list[Protocol]
    train: ImageSet
    scored: ImageSet
    given: dict[str, ImageSet]  # by name
    sides: dict[str, int]  # pixels a side at which each given set is read
    extractor_hash: str
    warnings: list[str]


def prepare(config: Evaluating, locations: Mapping[str, str]) -> Prepared:
    """Open and check the sets at `locations` (by name), the training and the scored images.

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
    places = image_places(config)
    storage = open_storage(config.storage)
    images = open_splits(places, config.data, config.seed, storage)
    train, scored = images["train"], images[networks[0].split]
    check_networks(networks, len(train.classes))
    shared = {"seed": config.seed, "max_bad_fraction": config.data.max_bad_fraction, "known": scored.classes}
    given = {
        name: open_labelled(place, storage, name=f"--set {name}", **shared)
        for name, place in locations.items()
    }
    _check_counts(config, train, given)
    extractor = inspect_extractor(config.embed.extractor)
    return Prepared(
        config,
        storage,
        networks,
        train,
        scored,
        given,
        {name: side(of_set, networks[0].image_size) for name, of_set in given.items()},
        content_hash(extractor, storage) if isinstance(extractor, Path) else extractor,
        check_splits(images, config.data.max_overlap_fraction),
    )


def score(prepared: Prepared, machine: Machine) -> dict[str, Any]:
    """evaluation.json of the given sets: as a run's own, with `given` and `audit` beside it."""
    config, networks, given = prepared.config, prepared.networks, prepared.given
    rules, seeds = networks[0], classifier_seeds(config.seed, config.evaluate.seeds)
    # InputError here, where it is caught, for weights that can't be had
    load_extractor(config.embed.extractor)
    embedded = _embed(prepared, machine)
    chosen = _baselines(prepared, embedded["train"], seeds)
    coverage = _coverage(prepared, embedded, chosen, seeds[0])
    sets = _sets(prepared, chosen, seeds)
    tests = read_pixels(prepared.scored, np.arange(len(prepared.scored)), rules.image_size)
    scores = train_all(sets, tests, networks, prepared.train.classes, machine)
    by_network = {
        label: _with_robustness(summarise(of_network), given) for label, of_network in scores.items()
    }
    audited = audit(
        [embedded["train"], embedded["scored"], *(embedded[name] for name in given)], prepared.train.classes
    )
    audited["warnings"] = list(dict.fromkeys(prepared.warnings + audited["warnings"]))
    document = {
        "protocol": rules.label,
        "split": rules.split,
        "sets": by_network[rules.label],
        "coverage": coverage,
        "audit": audited,
        "given": {name: _described(of_set) for name, of_set in given.items()},
        "settings": config.model_dump(mode="json", exclude={"workers", "storage"}),
        "versions": versions(),
        "hardware": hardware(machine),
    }
    return document | ({"networks": by_network} if len(by_network) > 1 else {})


def side(images: ImageSet, image_size: int) -> int:
    """Pixels a side at which a set is read: its own where all images are equal squares, else the protocol's."""

    def dimensions(path: str) -> tuple[int, int]:
        with Image.open(io.BytesIO(images.directory.read(path))) as image:
            return image.size

    with ThreadPoolExecutor(READERS) as pool:
        found = set(pool.map(dimensions, images.paths))
    width, height = next(iter(found))
    return width if len(found) == 1 and width == height and width <= 2 * image_size else image_size


def _check_counts(config: Evaluating, train: ImageSet, given: Mapping[str, ImageSet]) -> None:
    counts = train.counts()
    smallest = int(counts.argmin())
    if counts[smallest] <= config.evaluate.neighbours:
        raise InputError(
            f"data.train: class {train.classes[smallest]!r} has {counts[smallest]} images, evaluate.neighbours="
            f"{config.evaluate.neighbours} needs one more; add images or lower it"
        )
    coresets = [name for name in config.evaluate.baselines if name != "random"]
    for name, of_set in given.items():
        if (short := np.flatnonzero(of_set.counts() > counts)).size and config.evaluate.baselines:
            ours, real = of_set.counts()[short[0]], counts[short[0]]
            raise InputError(
                f"--set {name}: has {ours} images of class {train.classes[short[0]]!r}, data.train {real}: too few for "
                "baselines of the same number; use evaluate.baselines=[]"
            )
        if coresets and len(set(of_set.counts().tolist())) > 1:
            raise InputError(
                f"evaluate.baselines: {', '.join(coresets)} choose as many images of every class, but --set {name} has "
                "different numbers; use evaluate.baselines=[random]"
            )


def _embed(prepared: Prepared, machine: Machine) -> dict[str, AuditedImages]:
    """Every set, the training images as "train" and the scored ones as "scored", all at one size."""
    config, split = prepared.config, prepared.networks[0].split
    named = {"train": ("data.train", prepared.train), "scored": (f"data.{split}", prepared.scored)}
    named |= {name: (name, of_set) for name, of_set in prepared.given.items()}
    shared = {"image_size": max(prepared.sides.values()), "max_bad_fraction": config.data.max_bad_fraction}
    return {
        key: embed_images(
            of_set, config.embed, prepared.extractor_hash, prepared.storage, machine, name=name, **shared
        )
        for key, (name, of_set) in named.items()
    }  # fmt: skip


def _baselines(
    prepared: Prepared, real: AuditedImages, seeds: list[int]
) -> dict[tuple[str, int], np.ndarray]:
    """Rows of the training images by name of the baseline and seed, as many as each given set has.

    Sets of different sizes have baselines of their own, told apart by the number of images.
    """
    train, asked = prepared.train, prepared.config.evaluate.baselines
    row_of = {path: row for row, path in enumerate(train.paths)}
    rows_of_features = np.array([row_of[path] for path in real.paths])
    sizes = {tuple(of_set.counts().tolist()) for of_set in prepared.given.values()}
    chosen = {}
    for counts in sorted(sizes, key=sum):
        suffix = f" {sum(counts)}" if len(sizes) > 1 else ""
        if "random" in asked:
            chosen |= {(f"random{suffix}", seed): train.subset(counts, "random", seed) for seed in seeds}
        coresets = [name for name in asked if name != "random"]
        found = choose_all((real.features, real.labels), coresets, counts[0], seeds, train.classes)
        chosen |= {(f"{name}{suffix}", seed): rows_of_features[rows] for (name, seed), rows in found.items()}
    return chosen


def _sets(prepared: Prepared, chosen: Mapping[tuple[str, int], np.ndarray], seeds: list[int]) -> Sets:
    """What each seed trains on: the given sets, the baselines, the full training images where asked."""
    sets, size = {}, prepared.networks[0].image_size
    for name, of_set in prepared.given.items():
        pixels = read_pixels(of_set, np.arange(len(of_set)), prepared.sides[name])
        sets |= {(name, seed): pixels for seed in seeds}
    for (name, seed), rows in chosen.items():
        is_same = name.split()[0] not in SEEDED and seed != seeds[0]
        sets[name, seed] = sets[name, seeds[0]] if is_same else read_pixels(prepared.train, rows, size)
    if prepared.config.evaluate.full:
        full = read_pixels(prepared.train, np.arange(len(prepared.train)), size)
        sets |= {("full", seed): full for seed in seeds}
    return sets


def _coverage(
    prepared: Prepared,
    embedded: Mapping[str, AuditedImages],
    chosen: Mapping[tuple[str, int], np.ndarray],
    seed: int,
) -> dict[str, Any]:
    """Coverage of the given sets, of the baselines as `seed` chose them, and, for sets of one size, of the
    ceiling.
    """
    real, train = embedded["train"], prepared.train
    vectors: Vectors = (real.features, real.labels)
    place_of = {path: place for place, path in enumerate(real.paths)}
    sets = {name: (embedded[name].features, embedded[name].labels) for name in prepared.given}
    for (name, of_seed), rows in chosen.items():
        if of_seed == seed:
            places = [place_of[train.paths[row]] for row in rows if train.paths[row] in place_of]
            sets[name] = real.features[places], real.labels[places]
    neighbours = prepared.config.evaluate.neighbours
    counts = {count for of_set in prepared.given.values() for count in of_set.counts().tolist()}
    if len(counts) == 1 and max(counts) <= np.bincount(real.labels).min():
        places = ceiling(vectors, counts.pop(), neighbours, train.classes)
        sets["ceiling"] = real.features[places], real.labels[places]
    return measure_all(vectors, sets, neighbours, train.classes, COVERAGE)


def _with_robustness(
    sets: dict[str, dict[str, Any]], given: Mapping[str, ImageSet]
) -> dict[str, dict[str, Any]]:
    """The same, with the label-robust score of each given set, None where full or random real images are
    missing.
    """
    for name in given:
        random = sets.get("random") or sets.get(f"random {sets[name]['images']}")
        known = random is not None and "full" in sets
        means = [of_set["last"]["mean"] for of_set in (sets["full"], random, sets[name])] if known else None
        sets[name]["label_robust_score"] = label_robust_score(*means) if means else None
    return sets


def _described(images: ImageSet) -> dict[str, Any]:
    return {
        "location": images.place,
        "fingerprint": images.fingerprint,
        "images": len(images),
        "per_class": dict(zip(images.classes, images.counts().tolist(), strict=True)),
        "bad_images": images.bad,
    }
