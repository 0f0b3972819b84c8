"""Lower bounds of the selection objective: how far any choice can be from the best one.

L is the energy of a complete pairwise graph over the classes,
    L(g) = Σ_i θ_i(g_i) + Σ_{i<j} θ_ij(g_i, g_j),
    θ_i(g) = α log(d(c_{i,g}, r_i) + ε),  θ_ij(g, h) = -w log(d(c_{i,g}, c_{j,h}) + ε).

| method | what it does | of products | tight for |
|---|---|---|---|
| `series` | a tangent at the selection, of L made convex | those with the chosen | many classes |
| `trws` | moves costs between θ_i and θ_ij (Kolmogorov 2006) | all, in one process | few classes |
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np

from ims3_ray.method.s3.distributed_descent import Joined, fetch_pools
from ims3_ray.method.s3.objective import Objective, Selection

from . import series
from .trws import ROUNDING, fits, trws

CLOSE = 1e-4  # a gap that `auto` takes as proof
Answer = TypeVar("Answer")


class TaskRunner(Protocol):
    """Results of `function` on each tuple of arguments, in order, wherever they are computed."""

    def __call__(
        self, function: Callable[..., Answer], arguments: Sequence[tuple[object, ...]]
    ) -> list[Answer]: ...


def certify(
    selection: Selection, shards: Joined, objective: Objective, *, method: str, run: TaskRunner
) -> Selection:
    """`selection` with a lower bound, the same for any number of shards, and the name of what gave it.

    `method` auto takes the series and, where its gap is above CLOSE and the size allows, TRW-S too: the
    larger bound stands. A selection that is known to be exact keeps its own.
    """
    if method == "none" or selection.lower_bound is not None:
        return selection
    bounded: list[Selection] = []
    if method != "trws" or objective.pair_weight(len(selection.choice)) == 0:
        bounded.append(_bounded(selection, objective, "series", series_bound(selection, shards, objective)))
        gap, sizes = bounded[0].gap, shards.sizes()
        if method != "auto" or gap is None or gap <= CLOSE or not fits(len(sizes), int(sizes.max())):
            return bounded[0]
    bounded.append(_bounded(selection, objective, "trws", trws_bound(selection, shards, objective, run)))
    return max(bounded, key=lambda one: one.lower_bound or -np.inf)


def series_bound(selection: Selection, shards: Joined, objective: Objective) -> float:
    """The best over the orders: see series. Each shard works on its own classes."""
    chosen = shards.centroids(selection.choice)
    of_classes = np.concatenate(shards.ask(series.class_bounds, selection.choice, chosen, objective))
    return float(of_classes.sum(axis=0).max()) - _rounding(selection, objective)


def trws_bound(selection: Selection, shards: Joined, objective: Objective, run: TaskRunner) -> float:
    """The best of the bounds of TRW-S passes. One task: the classes are visited in turn."""
    weight, sizes = objective.pair_weight(len(selection.choice)), shards.sizes()
    arguments = (
        fetch_pools(shards, 0, len(sizes), sizes),
        shards.attractions(),
        selection.choice,
        objective.alpha / weight,
        objective.epsilon,
        selection.objective / weight,
    )
    return weight * run(trws, [arguments])[0]


def _bounded(selection: Selection, objective: Objective, method: str, bound: float) -> Selection:
    slack = ROUNDING * abs(selection.objective) + _rounding(selection, objective)
    assert bound <= selection.objective + slack, (method, bound, selection.objective)
    return replace(selection, lower_bound=min(bound, selection.objective), certificate=method)


def _rounding(selection: Selection, objective: Objective) -> float:
    num_classes = len(selection.choice)
    return ROUNDING * objective.pair_weight(num_classes) * num_classes * (num_classes - 1) / 2
