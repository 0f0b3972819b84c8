"""Coresets of real images, and the coverage of image sets: per class, in feature space, by Ray tasks."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ims3_ray.cluster.resources import CPUS_PER_ACTOR
from ims3_ray.cluster.tasks import map_in_order
from ims3_ray.errors import InputError
from ims3_ray.method.coresets import greedy_coverage, herding, k_center, k_medoids, medoids
from ims3_ray.method.coverage import RealClass, Values, class_mean, class_metrics
from ims3_ray.progress import bar
from ims3_ray.storage.rows import Index, places_by_class, read_together

# {name: function of a class's features (N, D), count and seed to row indices (count,)}
CORESETS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "herding": lambda x, count, _: herding(x, count),
    "k_center": lambda x, count, _: k_center(x, count),
    "medoids": medoids,
    "k_medoids": lambda x, count, _: k_medoids(x, count),
}
SEEDED = ("random", "medoids")  # one choice per seed; the others share one for all seeds
MAX_TASKS = 256  # whose keys are in flight at once; more than most clusters have CPUs
TARGET_TASKS = 64  # many classes are grouped into about this number of tasks, which share files
MAX_ROWS = 10_000  # real images per task, whose features are in memory
Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


def choose_coresets(
    real: Index, names: Sequence[str], count: int, seeds: Sequence[int], classes: Sequence[str]
) -> dict[tuple[str, int], np.ndarray]:
    """Rows of `real`, `count` per class in class order, for every (coreset name, seed).

    Raises InputError if a class has fewer than `count` images.
    """
    if not names:
        return {}
    rows = _checked_rows(real, count, classes)
    keys = [(name, seed) for name in names for seed in (seeds if name in SEEDED else seeds[:1])]

    def choose(x: np.ndarray, _: Arrays) -> dict[tuple[str, int], np.ndarray]:
        return {(name, seed): CORESETS[name](x, count, seed) for name, seed in keys}

    by_class = _map_classes("baselines", choose, real, rows)
    coresets = {
        key: np.concatenate([r[of[key]] for r, of in zip(rows, by_class, strict=True)]) for key in keys
    }
    return {(name, s): coresets[name, s if name in SEEDED else seeds[0]] for name in names for s in seeds}


def ceiling(real: Index, count: int, neighbours: int, classes: Sequence[str]) -> np.ndarray:
    """Rows of `real`, `count` per class, chosen greedily for maximum coverage."""
    rows = _checked_rows(real, count, classes)
    chosen = _map_classes("ceiling", lambda x, _: greedy_coverage(x, count, neighbours), real, rows)
    return np.concatenate([r[of_class] for r, of_class in zip(rows, chosen, strict=True)])


def measure_coverage(
    real: Index, sets: Mapping[str, Index], neighbours: int, classes: Sequence[str]
) -> dict[str, Values]:
    """The metrics of method.coverage for each set, averaged over the classes.

    Raises InputError if a class has too few real images or a set has none of a class.
    """
    rows = _checked_rows(real, neighbours + 1, classes)
    for name, features in sets.items():
        if missing := set(range(len(classes))) - set(features.labels.tolist()):
            raise InputError(
                f"set {name!r}: has no image of class {classes[min(missing)]!r}; coverage needs every class"
            )

    def measure(x: np.ndarray, of_sets: Arrays) -> dict[str, Values]:
        of_real = RealClass(x, neighbours)
        return {name: class_metrics(of_real, y) for name, y in of_sets.items()}

    set_rows = {name: places_by_class(features.labels, len(classes)) for name, features in sets.items()}
    of_class = (
        {name: features.take(set_rows[name][label]) for name, features in sets.items()}
        for label in range(len(rows))
    )
    by_class = _map_classes("coverage", measure, real, rows, of_class)
    return {name: class_mean({label: of[name] for label, of in enumerate(by_class)}) for name in sets}


def _checked_rows(real: Index, minimum: int, classes: Sequence[str]) -> list[np.ndarray]:
    by_class = places_by_class(real.labels, len(classes))
    for name, rows in zip(classes, by_class, strict=True):
        if len(rows) < minimum:
            raise InputError(
                f"data.train: class {name!r} has {len(rows)} readable images, and evaluation needs {minimum} "
                "(ipc, evaluate.neighbours); add images or lower them"
            )
    return by_class


def _map_classes(
    label: str,
    function: Callable[[np.ndarray, Arrays], T],
    real: Index,
    rows: Sequence[np.ndarray],
    sets: Iterable[Mapping[str, Index]] = itertools.repeat({}),
) -> list[T]:
    """`function(real features, features per set)` for every class, as Ray tasks, in class order.

    `label` names the progress bar; `rows` of `real` are per class. A task handles several classes and opens
    a file that they share once. Index keys are collected lazily, so only those of a few tasks are in memory.
    """
    per_task = max(1, min(MAX_ROWS * len(rows) // len(real.labels), math.ceil(len(rows) / TARGET_TASKS)))

    def work(of_real: list[Index], of_sets: list[Mapping[str, Index]]) -> list[T]:
        real_features = read_together(of_real)
        by_set = {name: read_together([of[name] for of in of_sets]) for name in of_sets[0]}
        return [
            function(x, {name: values[place] for name, values in by_set.items()})
            for place, x in enumerate(real_features)
        ]

    def tasks() -> Iterator[tuple[list[Index], list[Mapping[str, Index]]]]:
        remaining = iter(sets)
        for first in range(0, len(rows), per_task):
            own = [real.take(of_class) for of_class in rows[first : first + per_task]]
            yield own, list(itertools.islice(remaining, len(own)))

    results: list[T] = []
    with bar(label, len(rows), "classes") as progress:
        for of_classes in map_in_order(work, tasks(), MAX_TASKS, num_cpus=CPUS_PER_ACTOR):
            results += of_classes
            progress.update(len(of_classes))
    return results
