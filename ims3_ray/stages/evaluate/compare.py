"""Image sets compared with real images: what stands beside them, what each trains on and covers.

A set that is compared is named by who asks; beside it stand the baselines of as many real images, the full
training images, and in feature space the ceiling.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ims3_ray.cluster.resources import Machine
from ims3_ray.data.images import ImageSet
from ims3_ray.evaluation.results import Evaluation
from ims3_ray.evaluation.rules import Protocol
from ims3_ray.evaluation.teacher import Teacher, name_of
from ims3_ray.method.coverage import Values
from ims3_ray.method.seeding import permutation
from ims3_ray.storage.rows import Index

from .baselines import SEEDED, ceiling, choose_coresets, measure_all
from .classifiers import Hear, Sets, summarise, train_all


@dataclass(frozen=True)
class Real:
    """The training images, and the features of the M of them that can be read."""

    images: ImageSet
    keys: Sequence[str]  # (N,) what tells the images apart: ids or paths
    embedded: Sequence[str]  # (M,) the keys of the features
    vectors: Index  # of M images


@dataclass(frozen=True)
class Choice:
    """Real images that stand for a baseline: rows of the images, and places among the features."""

    rows: np.ndarray
    places: np.ndarray


FULL_SEEDS = 3  # at most: what is trained on all images differs least from seed to seed, and takes longest
Choices = Mapping[tuple[str, int], Choice]  # (name of a baseline, classifier seed)


def choose(
    real: Real,
    names: Collection[str],
    sizes: Iterable[Sequence[int]],
    seeds: Sequence[int],
    draws: int | None = None,
) -> dict[tuple[str, int], Choice]:
    """Every baseline for every seed, with as many images of each class as a size says.

    Where `draws` are more than the seeds, random images are drawn for the seeds that follow as well.
    Baselines of several sizes are told apart by their number of images: "random 50".
    """
    classes, sizes = real.images.classes, sorted(set(map(tuple, sizes)), key=sum)
    row_of = {key: row for row, key in reversed(list(enumerate(real.keys)))}
    rows_of_features = np.array([row_of[key] for key in real.embedded])
    coresets = [name for name in names if name != "random"]
    choices: dict[tuple[str, int], Choice] = {}
    for counts in sizes:
        suffix = f" {sum(counts)}" if len(sizes) > 1 else ""
        for seed in with_draws(seeds, draws) if "random" in names else ():
            rows = real.images.subset(counts, "random", seed)
            keys = {real.keys[row] for row in rows}
            places = np.flatnonzero([key in keys for key in real.embedded])
            choices[f"random{suffix}", seed] = Choice(rows, places)
        of_size = choose_coresets(real.vectors, coresets, counts[0], seeds, classes)
        for (name, seed), places in of_size.items():
            choices[f"{name}{suffix}", seed] = Choice(rows_of_features[places], places)
    return choices


def with_draws(seeds: Sequence[int], draws: int | None) -> list[int]:
    """The seeds of random images: those given, and as many after them as `draws` ask for."""
    return [*seeds, *range(seeds[-1] + 1, seeds[0] + (draws or 0))]


def training_sets(
    own: Mapping[str, ImageSet], choices: Choices, images: ImageSet, seeds: Sequence[int], full: bool
) -> Sets:
    """What each seed trains on: the sets compared, the baselines, and, where asked, all training images.

    All training images are for the first FULL_SEEDS alone.
    """
    sets = {(name, seed): of_set for name, of_set in own.items() for seed in seeds}
    for (name, seed), choice in choices.items():
        is_same = name.split()[0] not in SEEDED and seed != seeds[0]
        sets[name, seed] = sets[name, seeds[0]] if is_same else images.take(choice.rows)
    if full:
        sets |= {("full", seed): images for seed in seeds[:FULL_SEEDS]}
    return sets


class Asked(NamedTuple):
    """What classifiers are asked about: images to score on, and training images for a membership attack."""

    scored: ImageSet
    members: ImageSet | None = None


def asked_about(scored: ImageSet, train: ImageSet, members: int) -> Asked:
    """So many `members`, the same for every seed; none of 0."""
    rows = np.sort(permutation(len(train), "members")[:members])
    return Asked(scored, train.take(rows) if members else None)


def cover(
    own: Mapping[str, Index], choices: Choices, real: Real, seed: int, neighbours: int, count: int | None
) -> dict[str, Values]:
    """Coverage of the sets compared, of the baselines by `seed`, of the ceiling of `count` images a class."""
    sets = {**own, **real_vectors(choices, real, seed, neighbours, count)}
    return measure_all(real.vectors, sets, neighbours, real.images.classes)


def real_vectors(
    choices: Choices, real: Real, seed: int, neighbours: int, count: int | None
) -> dict[str, Index]:
    """Of the baselines as `seed` chose them and, where a count is given, of the ceiling."""
    places = {name: choice.places for (name, of_seed), choice in choices.items() if of_seed == seed}
    if count is not None:
        places["ceiling"] = ceiling(real.vectors, count, neighbours, real.images.classes)
    return {name: real.vectors.take(rows) for name, rows in places.items()}


def score(
    sets: Sets,
    own: Collection[str],
    asked: Asked,
    networks: Sequence[Protocol],
    machine: Machine,
    hear: Hear | None = None,
    teacher: Teacher | None = None,
) -> Evaluation:
    """evaluation.json but for its coverage: every network trained on every set and scored.

    With soft labels there is no label-robust score, which is one of hard labels. Each set's
    figures have how well training images are told from scored ones, where there are `asked.members`.
    """
    rules = networks[0]
    learnt = teacher and teacher.given
    scores = train_all(sets, asked.scored, networks, machine, hear, learnt, asked.members)
    compared = () if teacher else own
    by_network = {label: summarise(of_network, compared) for label, of_network in scores.items()}
    sets_of_first = by_network[rules.label]
    document = Evaluation(protocol=rules.label, split=rules.split, sets=sets_of_first, coverage={})
    if teacher:
        document["teacher"] = {"network": name_of(teacher.given), "accuracy": teacher.accuracy}
    if len(by_network) > 1:
        document["networks"] = by_network
    return document
