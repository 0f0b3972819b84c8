"""Real images in the place of synthetic ones, and how well sets cover real images: class by class, by Ray."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from ims3_ray.cluster.resources import CPUS_PER_ACTOR
from ims3_ray.cluster.tasks import map_in_order
from ims3_ray.errors import InputError
from ims3_ray.method.coresets import greedy_coverage, herding, k_center, k_medoids, medoids
from ims3_ray.method.coverage import RealClass, Values, class_mean, class_metrics
from ims3_ray.progress import bar
from ims3_ray.storage.rows import Index, places_by_class, read_together

# (features (N, D) of a class, count, seed) → rows (count,)
CORESETS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "herding": lambda x, count, _: herding(x, count),
    "k_center": lambda x, count, _: k_center(x, count),
    "medoids": medoids,
    "k_medoids": lambda x, count, _: k_medoids(x, count),
}
SEEDED = ("random", "medoids")  # a choice for each seed; the others are one for all
METRICS = ("coverage", "low_density_coverage", "deciles", "density", "precision", "recall")
METRICS += ("copy_rate", "nearest", "least_nearest", "vendi", "kid")
MOST_TASKS = 256  # whose keys are on their way at once: more than most clusters have CPUs
ENOUGH_TASKS = 64  # of several classes, where classes are many: they share files
MOST_ROWS = 10_000  # real images of a task, whose features are in memory
Sets = Mapping[str, np.ndarray]
T = TypeVar("T")


def choose_coresets(
    real: Index, names: Sequence[str], count: int, seeds: Sequence[int], classes: Sequence[str]
) -> dict[tuple[str, int], np.ndarray]:
    """Rows of `real`, `count` a class, for every coreset named and every seed, class after class.

    Raises InputError for a class of fewer than `count` images.
    """
    if not names:
        return {}
    rows = _rows_by_class(real, count, classes)
    keys = [(name, seed) for name in names for seed in (seeds if name in SEEDED else seeds[:1])]
    by_class = _each_class("baselines", partial(_choose, keys=keys, count=count), real, rows)
    coresets = {
        key: np.concatenate([r[of[key]] for r, of in zip(rows, by_class, strict=True)]) for key in keys
    }
    return {(name, s): coresets[name, s if name in SEEDED else seeds[0]] for name in names for s in seeds}


def ceiling(real: Index, count: int, neighbours: int, classes: Sequence[str]) -> np.ndarray:
    """Rows of `real`, `count` a class, that cover as much as a greedy choice of real images can."""
    rows = _rows_by_class(real, count, classes)
    cover = partial(_cover, count=count, k=neighbours)
    places = _each_class("ceiling", cover, real, rows)
    return np.concatenate([r[of_class] for r, of_class in zip(rows, places, strict=True)])


def measure_all(
    real: Index, sets: Mapping[str, Index], neighbours: int, classes: Sequence[str]
) -> dict[str, Values]:
    """METRICS of method.coverage of each set, averaged over the classes.

    Raises InputError for a class with too few real images, or of which a set has none.
    """
    rows = _rows_by_class(real, neighbours + 1, classes)
    for name, vectors in sets.items():
        if missing := set(range(len(classes))) - set(vectors.labels.tolist()):
            raise InputError(
                f"set {name!r}: has no image of class {classes[min(missing)]!r}, whose coverage is asked for"
            )
    of_sets = {name: places_by_class(vectors.labels, len(classes)) for name, vectors in sets.items()}
    of_class = (
        {name: vectors.take(of_sets[name][label]) for name, vectors in sets.items()}
        for label in range(len(rows))
    )
    by_class = _each_class("coverage", partial(_measure, neighbours=neighbours), real, rows, of_class)
    means = {name: class_mean({label: of[name] for label, of in enumerate(by_class)}) for name in sets}
    return {name: {metric: mean[metric] for metric in METRICS} for name, mean in means.items()}


def _choose(
    label: int,  # noqa: ARG001
    x: np.ndarray,
    sets: Sets,  # noqa: ARG001
    keys: list[tuple[str, int]],
    count: int,
) -> dict[tuple[str, int], np.ndarray]:
    return {(name, seed): CORESETS[name](x, count, seed) for name, seed in keys}


def _cover(label: int, x: np.ndarray, sets: Sets, count: int, k: int) -> np.ndarray:  # noqa: ARG001
    return greedy_coverage(x, count, k)


def _measure(label: int, x: np.ndarray, sets: Sets, neighbours: int) -> dict[str, Values]:  # noqa: ARG001
    real = RealClass(x, neighbours)
    return {name: class_metrics(real, y) for name, y in sets.items()}


def _rows_by_class(real: Index, least: int, classes: Sequence[str]) -> list[np.ndarray]:
    by_class = places_by_class(real.labels, len(classes))
    for name, rows in zip(classes, by_class, strict=True):
        if len(rows) < least:
            raise InputError(
                f"data.train: class {name!r} has {len(rows)} readable images, and evaluation needs {least} "
                "(ipc, evaluate.neighbours); add images or lower them"
            )
    return by_class


def _each_class(
    what: str,
    function: Callable[[int, np.ndarray, Sets], T],
    real: Index,
    rows: Sequence[np.ndarray],
    sets: Iterable[Mapping[str, Index]] = itertools.repeat({}),
) -> list[T]:
    """`function(class, its real features, its features in each set)` for every class, as Ray tasks, in order.

    `what` it gives names the bar; `rows` of `real` are the classes'. A task has a few classes, and opens a
    file that they share once. Keys are collected as tasks begin, so those of a few are in memory.
    """
    per_task = max(1, min(MOST_ROWS * len(rows) // len(real.labels), math.ceil(len(rows) / ENOUGH_TASKS)))

    def work(first: int, of_real: list[Index], of_sets: list[Mapping[str, Index]]) -> list[T]:
        x = read_together(of_real)
        y = {name: read_together([of[name] for of in of_sets]) for name in of_sets[0]}
        return [
            function(first + place, x[place], {name: values[place] for name, values in y.items()})
            for place in range(len(x))
        ]

    def blocks() -> Iterator[tuple[int, list[Index], list[Mapping[str, Index]]]]:
        made = iter(sets)
        for first in range(0, len(rows), per_task):
            own = [real.take(of_class) for of_class in rows[first : first + per_task]]
            yield first, own, list(itertools.islice(made, len(own)))

    done: list[T] = []
    with bar(what, len(rows), "classes") as shown:
        for of_classes in map_in_order(work, blocks(), MOST_TASKS, num_cpus=CPUS_PER_ACTOR):
            done += of_classes
            shown.update(len(of_classes))
    return done
