"""Real images in the place of synthetic ones, and how well any set covers the real images; class by class, as
Ray tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray

from ims3_ray.cluster.machine import ANYWHERE, CPUS_PER_ACTOR
from ims3_ray.errors import InputError
from ims3_ray.method.coresets import greedy_coverage, herding, k_center, k_medoids, medoids
from ims3_ray.method.coverage import Values, class_coverage, class_mean
from ims3_ray.progress import bar

# (features (N, D) of a class, count, seed) → rows (count,)
CORESETS: dict[str, Callable[..., np.ndarray]] = {
    "herding": lambda x, count, seed: herding(x, count),
    "k_center": lambda x, count, seed: k_center(x, count),
    "medoids": medoids,
    "k_medoids": lambda x, count, seed: k_medoids(x, count),
}
COVERAGE = (
    "coverage",
    "low_density_coverage",
    "deciles",
    "density",
    "precision",
    "recall",
    "copy_rate",
    "vendi",
    "kid",
)
SEEDED = ("random", "medoids")  # a choice for each seed; the others are one for all
Vectors = tuple[np.ndarray, np.ndarray]  # features (N, D), labels (N,)


def choose_all(
    real: Vectors | None, names: Sequence[str], count: int, seeds: Sequence[int], classes: Sequence[str]
) -> dict[tuple[str, int], np.ndarray]:
    """Rows of `real`, `count` a class, for every coreset named and every seed, class after class.

    Raises InputError where there are no features to choose by, and for a class of fewer than `count` images.
    """
    if unknown := set(names) - set(CORESETS):
        raise InputError(
            f"evaluate.baselines: {', '.join(sorted(unknown))} unknown; choose from {', '.join(CORESETS)}"
        )
    if not names:
        return {}
    if real is None:
        raise InputError(
            f"evaluate.baselines: {', '.join(names)} choose real images by their features, and there are none; "
            "give an extractor, or use evaluate.baselines=[random]"
        )
    rows = _rows_by_class(real, count, classes)
    keys = [(name, seed) for name in names for seed in (seeds if name in SEEDED else seeds[:1])]
    found = _each_class(partial(_choose, keys=keys, count=count), [(real[0][r],) for r in rows])
    chosen = {key: np.concatenate([r[of[key]] for r, of in zip(rows, found, strict=True)]) for key in keys}
    return {
        (name, seed): chosen[name, seed if name in SEEDED else seeds[0]] for name in names for seed in seeds
    }


def ceiling(real: Vectors, count: int, neighbours: int, classes: Sequence[str]) -> np.ndarray:
    """Rows of `real`, `count` a class, that cover as much as a greedy choice of real images can."""
    rows = _rows_by_class(real, count, classes)
    found = _each_class(partial(greedy_coverage, count=count, k=neighbours), [(real[0][r],) for r in rows])
    return np.concatenate([r[chosen] for r, chosen in zip(rows, found, strict=True)])


def measure_all(
    real: Vectors,
    sets: Mapping[str, Vectors],
    neighbours: int,
    classes: Sequence[str],
    metrics: Sequence[str],
) -> dict[str, Values]:
    """Each set's `metrics` of method.coverage, averaged over the classes.

    Raises InputError for a class with too few real images, or of which a set has none.
    """
    rows = _rows_by_class(real, neighbours + 1, classes)
    for name, (_, labels) in sets.items():
        if missing := set(range(len(classes))) - set(labels.tolist()):
            raise InputError(
                f"set {name!r}: has no image of class {classes[min(missing)]!r}, whose coverage is asked for"
            )
    work = [
        (label, real[0][r], {name: vectors[labels == label] for name, (vectors, labels) in sets.items()})
        for label, r in enumerate(rows)
    ]
    found = _each_class(partial(_measure, neighbours=neighbours), work)
    means = {name: class_mean({label: of[name] for label, of in enumerate(found)}) for name in sets}
    return {name: {metric: mean[metric] for metric in metrics} for name, mean in means.items()}


def _choose(x: np.ndarray, keys: list[tuple[str, int]], count: int) -> dict[tuple[str, int], np.ndarray]:
    return {(name, seed): CORESETS[name](x, count, seed) for name, seed in keys}


def _measure(label: int, x: np.ndarray, sets: dict[str, np.ndarray], neighbours: int) -> dict[str, Values]:
    def of_class(vectors: np.ndarray) -> np.ndarray:
        return np.full(len(vectors), label)

    return {
        name: class_coverage(x, of_class(x), y, of_class(y), k=neighbours).per_class[label]
        for name, y in sets.items()
    }


def _rows_by_class(real: Vectors, least: int, classes: Sequence[str]) -> list[np.ndarray]:
    rows = [np.flatnonzero(real[1] == label) for label in range(len(classes))]
    for name, found in zip(classes, rows, strict=True):
        if len(found) < least:
            raise InputError(
                f"data.train: class {name!r} has {len(found)} readable images, and evaluation needs {least} "
                "(ipc, evaluate.neighbours); add images or lower them"
            )
    return rows


def _each_class(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """`function(*arguments[i])` for every class i, as Ray tasks."""
    task = ray.remote(num_cpus=CPUS_PER_ACTOR, **ANYWHERE)(lambda *values: function(*values))
    pending = {task.remote(*values): label for label, values in enumerate(arguments)}
    done: dict[int, Any] = {}
    with bar("evaluate", len(pending), "classes") as shown:
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            done[pending.pop(ready)] = ray.get(ready)
            shown.update(1)
    return [done[label] for label in range(len(arguments))]
