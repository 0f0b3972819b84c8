"""Lower bounds of the selection objective: how far a selection can be from the best one.

L is the energy of a complete pairwise graph over the classes,
    L(g) = Σ_i θ_i(g_i) + Σ_{i<j} θ_ij(g_i, g_j),
    θ_i(g) = α log(d(c_{i,g}, r_i) + ε),  θ_ij(g, h) = -w log(d(c_{i,g}, c_{j,h}) + ε).

| method | idea | products | tight for |
|---|---|---|---|
| `series` | tangent at the selection of a convex form of L | those with the selected | many classes |
| `trws` | moves costs between θ_i and θ_ij (Kolmogorov 2006) | all, in one process | few classes |

The series bound: L is written as a convex quadratic form, which lies above its tangent at a choice g*.
For any μ (here the mean of the selected centroids), let s_a = 1 - 2 a·μ + μ·μ, M = (s_a + s_b) / 2 + ε and
y = (a - μ)·(b - μ) / M. Then d(a, b) + ε = M (1 - y), so
    -log(d + ε) = -log M + Σ_k y^k / k.
Cut after an odd order, the remainder is never negative for y < 1. The kept part κ has a feature map φ with
|φ(a) - φ(b)|² = κ(a, a) - 2 κ(a, b) + κ(b, b): 1 / M is positive definite, so is each y^k (Schur), and so
is -log M up to a constant. Hence Σ_{i<j} κ is ½ |Σ_i φ(c_i)|² minus a sum over the classes, and
    L(g) ≥ Σ_i [min_g (ℓ_i(g) - w q_i(g)) - w/2 Σ_{j≠i} κ(c_{i,g*_i}, c_{j,g*_j})],
    ℓ_i(g) = α log(d(c_{i,g}, r_i) + ε) + w Σ_{j≠i} κ(c_{i,g}, c_{j,g*_j}),
    q_i(g) = ½ |φ(c_{i,g}) - φ(c_{i,g*_i})|².
q loses one term per class against C pairs, so the gap falls as 1 / C. The cost is C products per candidate.
A higher order leaves less out but enlarges q: the bound is the best over the orders.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from .distributed_descent import Shards, fetch_pools
from .objective import BLOCK, COINCIDENT, Choice, Objective, Selection
from .shard import Shard
from .trws import ROUNDING, fits, trws

PROOF_GAP = 1e-4  # `auto` stops at this gap
ORDER = 31  # the highest; all odd orders up to it are tried
PerOrder = Float64[np.ndarray, "r O"]
Answer = TypeVar("Answer")


class TaskRunner(Protocol):
    """Runs `function` on each tuple of arguments, anywhere; returns the results in order."""

    def __call__(
        self, function: Callable[..., Answer], arguments: Sequence[tuple[object, ...]]
    ) -> list[Answer]: ...


def certify(
    selection: Selection, shards: Shards, objective: Objective, *, method: str, run: TaskRunner
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


def series_bound(selection: Selection, shards: Shards, objective: Objective) -> float:
    """Return the best bound over the orders (see above). Each shard computes its own classes."""
    chosen = shards.centroids(selection.choice)
    per_class = shards.series_bounds(selection.choice, chosen)
    return float(per_class.sum(axis=0).max()) - _rounding(selection, objective)


def trws_bound(selection: Selection, shards: Shards, objective: Objective, run: TaskRunner) -> float:
    """Return the best bound of the TRW-S passes. One task, because classes are visited in turn."""
    weight, sizes = objective.pair_weight(len(selection.choice)), shards.sizes()
    arguments = (
        fetch_pools(shards, sizes),
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


def class_bounds(
    shard: Shard, choice: Choice, chosen: Float32[np.ndarray, "C D"], objective: Objective
) -> Float64[np.ndarray, "n O"]:
    """Return each class's contribution to the bound by each odd order; `choice` selects `chosen`."""
    center = chosen.mean(axis=0, dtype=np.float64)
    vectors, squares = _centered(chosen, center)
    weight, epsilon = objective.pair_weight(len(chosen)), objective.epsilon
    attractions, bounds = shard.attractions(), list[np.ndarray]()
    for rows, classes, where in shard.tiles():
        own = _centered(rows, center)
        first = np.flatnonzero(np.diff(classes, prepend=-1))
        at_choice = first + choice[classes[first]]
        linear = weight * _sums(*own, classes, vectors, squares, epsilon)
        own_choice = vectors[classes], squares[classes]
        costs = objective.alpha * attractions[where, None] + linear
        costs -= weight * _half_squared(*own, *own_choice, epsilon)
        bounds.append(np.minimum.reduceat(costs, first) - 0.5 * linear[at_choice])
    return np.concatenate(bounds)


def _centered(
    rows: Float32[np.ndarray, "r D"], center: Float64[np.ndarray, " D"]
) -> tuple[Float32[np.ndarray, "r D"], Float64[np.ndarray, " r"]]:
    """Return a - μ, exact in single precision even for close centroids, and s.

    s is kept above rounding; a larger s only lowers κ.
    """
    vectors = np.empty_like(rows)
    np.subtract(rows, center, out=vectors, casting="same_kind")
    squares = 1 - 2 * np.einsum("rd,d->r", rows, center) + center @ center
    return vectors, np.maximum(squares, COINCIDENT)


def _sums(
    rows: Float32[np.ndarray, "r D"],
    row_squares: Float64[np.ndarray, " r"],
    classes: Int[np.ndarray, " r"],
    vectors: Float32[np.ndarray, "C D"],
    squares: Float64[np.ndarray, " C"],
    epsilon: float,
) -> PerOrder:
    """Return Σ_j κ of each row with the centroids `vectors` of the other classes."""
    sums = np.zeros((len(rows), 1 + ORDER))  # of -log M and of each power of y
    halves, offsets = 0.5 * row_squares.astype(np.float32), (0.5 * squares + epsilon).astype(np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = slice(start, start + BLOCK)
        scale = halves[:, None] + offsets[block]
        y = rows @ vectors[block].T
        y /= scale
        own = np.flatnonzero(classes // BLOCK == start // BLOCK)
        y[own, classes[own] - start], scale[own, classes[own] - start] = 0, 1
        sums[:, 0] -= np.log(scale, out=scale).sum(axis=1, dtype=np.float64)
        _add_powers(y, sums[:, 1:])
    return _orders(sums[:, 0], sums[:, 1:])


def _add_powers(y: Float32[np.ndarray, "r m"], sums: Float64[np.ndarray, "r ORDER"]) -> None:
    """Add Σ_j y^k to sums[:, k - 1]. Σ y^(a+b) is the product of two power rows: half the work."""
    sums[:, 0] += y.sum(axis=1, dtype=np.float64)
    power = y
    for k in range(1, ORDER // 2 + 1):
        following = power * y
        sums[:, 2 * k - 1] += np.vecdot(power, power)
        sums[:, 2 * k] += np.vecdot(power, following)
        power = following


def _half_squared(
    a: Float32[np.ndarray, "r D"],
    a_squares: Float64[np.ndarray, " r"],
    b: Float32[np.ndarray, "r D"],
    b_squares: Float64[np.ndarray, " r"],
    epsilon: float,
) -> PerOrder:
    """Return ½ |φ(a) - φ(b)|² per row."""

    def kernel(products: Float[np.ndarray, " r"], scale: Float64[np.ndarray, " r"]) -> PerOrder:
        y = np.repeat((products / (scale + epsilon))[:, None], ORDER, axis=1)
        return _orders(-np.log(scale + epsilon), np.multiply.accumulate(y, axis=1))

    def dot(x: Float32[np.ndarray, "r D"], z: Float32[np.ndarray, "r D"]) -> Float64[np.ndarray, " r"]:
        return np.einsum("rd,rd->r", x, z, dtype=np.float64)

    within = kernel(dot(a, a), a_squares) + kernel(dot(b, b), b_squares)
    return 0.5 * within - kernel(dot(a, b), 0.5 * (a_squares + b_squares))


def _orders(constant: Float64[np.ndarray, " r"], powers: Float64[np.ndarray, "r ORDER"]) -> PerOrder:
    """Return `constant` + Σ_{k ≤ n} powers[:, k - 1] / k for each odd n."""
    return constant[:, None] + np.cumsum(powers / np.arange(1, ORDER + 1), axis=1)[:, ::2]
