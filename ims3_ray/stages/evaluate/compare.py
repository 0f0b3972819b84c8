"""Compare image sets with real images: their baselines, what each classifier trains on, coverage, accuracy.

Each compared set is accompanied by baselines of as many real images, by all training images ("full") and, in
feature space, by the ceiling.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ims3_ray.data.images import ImageSet, Tiles
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.evaluation.results import Evaluation
from ims3_ray.evaluation.teacher import Teacher, teacher_name
from ims3_ray.method.coverage import Values
from ims3_ray.storage.rows import Index

from .baselines import SEEDED, ceiling, choose_coresets, measure_coverage
from .classifiers import Scores, Sets, numerics_deviation, summarise

FULL_SEEDS = 3  # maximum: the full set's accuracy varies least over seeds, and takes longest


@dataclass(frozen=True)
class Real:
    """The N training images, and the features of the M readable ones."""

    images: ImageSet
    keys: Sequence[object]  # (N,) paths, or pairs of label and id: classes may share an image
    embedded: Sequence[object]  # (M,) the keys of the features
    features: Index  # of M images

    @classmethod
    def by_id(cls, images: ImageSet, features: Index) -> "Real":
        """Match images and features, with the key "image_id", by label and id."""
        keys = zip(images.labels.tolist(), images.ids, strict=True)
        embedded = zip(features.labels.tolist(), features.keys["image_id"].tolist(), strict=True)
        return cls(images, list(keys), list(embedded), features)


@dataclass(frozen=True)
class Baseline:
    """Real images chosen as a baseline: rows of the images, and rows of the features."""

    image_rows: np.ndarray
    feature_rows: np.ndarray


Baselines = Mapping[tuple[str, int], Baseline]  # {(name, classifier seed): baseline}


def choose_baselines(
    real: Real,
    names: Collection[str],
    sizes: Iterable[Sequence[int]],
    seeds: Sequence[int],
    draws: int | None = None,
) -> dict[tuple[str, int], Baseline]:
    """Every named baseline for every seed and every size, a size being a number of images per class.

    Random images are chosen for `draws` seeds if these are more than `seeds`. If there are several sizes,
    names carry the number of images: "random 50".
    """
    classes, sizes = real.images.classes, sorted(set(map(tuple, sizes)), key=sum)
    row_of = {key: row for row, key in reversed(list(enumerate(real.keys)))}
    rows_of_features = np.array([row_of[key] for key in real.embedded])
    embedded = set(real.embedded)
    rows_of_images = np.flatnonzero([key in embedded for key in real.keys])  # the readable ones
    readable, coresets = real.images.take(rows_of_images), [name for name in names if name != "random"]
    random_seeds = [*seeds, *range(seeds[-1] + 1, seeds[0] + (draws or 0))] if "random" in names else []
    baselines: dict[tuple[str, int], Baseline] = {}
    for counts in sizes:
        suffix = f" {sum(counts)}" if len(sizes) > 1 else ""
        for seed in random_seeds:
            rows = rows_of_images[readable.subset(counts, "random", seed)]
            keys = {real.keys[row] for row in rows}
            feature_rows = np.flatnonzero([key in keys for key in real.embedded])
            baselines[f"random{suffix}", seed] = Baseline(rows, feature_rows)
        of_size = choose_coresets(real.features, coresets, counts[0], seeds, classes)
        for (name, seed), feature_rows in of_size.items():
            baselines[f"{name}{suffix}", seed] = Baseline(rows_of_features[feature_rows], feature_rows)
    return baselines


def training_sets(
    own: Mapping[str, ImageSet],
    baselines: Baselines,
    images: ImageSet,
    seeds: Sequence[int],
    full: bool,
    tiles: Tiles | None = None,
) -> Sets:
    """The training images per set and seed: the compared sets, the baselines and, if `full`, all `images`.

    The full set is trained on by the first FULL_SEEDS seeds only. With `tiles`, baselines are packed in the
    same way: reduced to tiles and enlarged.
    """
    reduced = tiles and Tiles(1, tiles.side)
    sets = {(name, seed): of_set for name, of_set in own.items() for seed in seeds}
    for (name, seed), baseline in baselines.items():
        is_same = name.split()[0] not in SEEDED and seed != seeds[0]
        if is_same:
            sets[name, seed] = sets[name, seeds[0]]
        else:
            sets[name, seed] = replace(images.take(baseline.image_rows), tiles=reduced)
    if full:
        sets |= {("full", seed): images for seed in seeds[:FULL_SEEDS]}
    return sets


def cover(
    own: Mapping[str, Index], baselines: Baselines, real: Real, seed: int, neighbours: int, count: int | None
) -> dict[str, Values]:
    """Coverage of the compared sets, `seed`'s baselines, and the ceiling of `count` images per class."""
    sets = {**own, **real_features(baselines, real, seed, neighbours, count)}
    return measure_coverage(real.features, sets, neighbours, real.images.classes)


def real_features(
    baselines: Baselines, real: Real, seed: int, neighbours: int, count: int | None
) -> dict[str, Index]:
    """Features of `seed`'s baselines and, with a `count`, of the ceiling."""
    rows = {name: chosen.feature_rows for (name, of_seed), chosen in baselines.items() if of_seed == seed}
    if count is not None:
        rows["ceiling"] = ceiling(real.features, count, neighbours, real.images.classes)
    return {name: real.features.take(of_set) for name, of_set in rows.items()}


def describe(
    scores: Scores, own: Collection[str], protocols: Sequence[Protocol], teacher: Teacher | None
) -> Evaluation:
    """evaluation.json of `scores` without coverage.

    Soft labels have no label-robust score, which is defined for hard labels.
    """
    first = protocols[0]
    compared = () if teacher else own
    by_network = {label: summarise(of_network, compared) for label, of_network in scores.items()}
    document = Evaluation(protocol=first.label, split=first.split, sets=by_network[first.label], coverage={})
    if numerics := numerics_deviation(scores):
        document["numerics"] = numerics
    if teacher:
        document["teacher"] = {"network": teacher_name(teacher.source), "accuracy": teacher.accuracy}
    if len(by_network) > 1:
        document["networks"] = by_network
    return document
