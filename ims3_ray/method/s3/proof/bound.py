"""Lower bounds of the selection objective: how far a selection can be from the best one.

L is the energy of a complete pairwise graph over the classes,
    L(g) = Σ_i θ_i(g_i) + Σ_{i<j} θ_ij(g_i, g_j),
    θ_i(g) = α log(d(c_{i,g}, r_i) + ε),  θ_ij(g, h) = -w log(d(c_{i,g}, c_{j,h}) + ε).

| method | idea | products | tight for |
|---|---|---|---|
| `series` | tangent at the selection of a convex form of L | those with the selected | many classes |
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

PROOF_GAP = 1e-4  # `auto` stops at this gap
Answer = TypeVar("Answer")


class TaskRunner(Protocol):
    """Runs `function` on each tuple of arguments, anywhere; returns the results in order."""

    def __call__(
        self, function: Callable[..., Answer], arguments: Sequence[tuple[object, ...]]
    ) -> list[Answer]: ...


def certify(
    selection: Selection, shards: Joined, objective: Objective, *, method: str, run: TaskRunner
) -> Selection:
    """Return `selection` with a lower bound and the name of its method; the same for any number of shards.

    `auto` runs `series` and, if its gap exceeds PROOF_GAP and the size allows, TRW-S; the larger bound wins.
    An exact selection keeps its own bound.
    """
    if method == "none" or selection.lower_bound is not None:
        return selection
    bounded: list[Selection] = []
    if method != "trws" or objective.pair_weight(len(selection.choice)) == 0:
        bounded.append(_bounded(selection, objective, "series", series_bound(selection, shards, objective)))
        gap, sizes = bounded[0].gap, shards.sizes()
        if method != "auto" or gap is None or gap <= PROOF_GAP or not fits(len(sizes), int(sizes.max())):
            return bounded[0]
    bounded.append(_bounded(selection, objective, "trws", trws_bound(selection, shards, objective, run)))
    return max(bounded, key=lambda result: result.lower_bound or -np.inf)


def series_bound(selection: Selection, shards: Joined, objective: Objective) -> float:
    """Return the best bound over the orders (see series). Each shard computes its own classes."""
    chosen = shards.centroids(selection.choice)
    per_class = np.concatenate(shards.ask(series.class_bounds, selection.choice, chosen, objective))
    return float(per_class.sum(axis=0).max()) - _rounding(selection, objective)


def trws_bound(selection: Selection, shards: Joined, objective: Objective, run: TaskRunner) -> float:
    """Return the best bound of the TRW-S passes. One task, because classes are visited in turn."""
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
