"""Beyond the paper: choose K single images per class instead of one of its ready-made subgroups.

| here | meaning |
|---|---|
| `images[i]` (N, D) | f_n, unit-length features of the images of class i |
| `choice` (C, K) | S_i, the chosen images of each class |
| c_i | s_i / |s_i|, s_i = Σ_{n in S_i} f_n: the centroid of a choice |
| `covers[i]` (M, N) | v(n, x): how well image n covers each of M real images x |
| κ | weight of coverage |

    L(S) = α Σ_i log(d(c_i, r_i) + ε) - w Σ_{i<j} log(d(c_i, c_j) + ε) - κ Σ_i coverage(S_i)
The first two terms are those of `objective`. Coverage (see `image_coverage`) is what a centroid does not
measure: k-medoids among the candidates (Kaufman & Rousseeuw 1990).

Each class swaps images one by one against the centroids of the other classes. Classes move together in the
rounds of `distributed_descent`. No single swap improves the result.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64, Int

from .distributed_descent import descend
from .image_coverage import Chosen, CoverageChanges, Free, Table, covered_share
from .objective import (
    COINCIDENT,
    Objective,
    Pools,
    Selection,
    Terms,
    check_coincident,
    own_logs,
    pair_separation,
)
from .shard import History, Moves, check_candidates

SHORTLIST = 64  # swaps, the best by first order, that are computed exactly before all others
BLOCK_VALUES = 1_000_000  # values of a block of swaps × classes
Choice = Int[np.ndarray, "C K"]


class ImageShards(Protocol):
    """The images of all classes, in one `ImageShard` or in Ray actors; calls are safe to repeat."""

    def closest(self) -> Choice:
        """Return the K images of each class nearest to its real centroid."""
        ...

    def centroids(self, choice: Choice) -> Float32[np.ndarray, "C D"]:
        """Return c_i of `choice`."""
        ...

    def own_terms(self, choice: Choice) -> Float64[np.ndarray, "C 2"]:
        """Return log(d(c, r) + ε) and coverage of each class."""
        ...

    def propose(self, history: History, tolerance: float) -> Moves:
        """Return the swaps of each class that gain more than `tolerance`, while the other classes stay."""
        ...


def solve_images(shards: ImageShards, objective: Objective, *, start: Choice | None = None) -> Selection:
    """Swap images from `start`, or from each class's images nearest to its real centroid.

    Raises CoincidentError if ε is 0 and two centroids of the result coincide.
    """
    closest = shards.closest()
    weight = objective.pair_weight(len(closest))

    def terms_of(choice: Choice) -> tuple[Terms, tuple[int, int] | None]:
        attraction, covered = shards.own_terms(choice).sum(axis=0).tolist()
        separation, coincident = pair_separation(shards.centroids(choice), objective.epsilon)
        total = objective.alpha * attraction - weight * separation - objective.coverage * covered
        return Terms(attraction, separation, total, covered), coincident

    first = closest if start is None else start
    choice, _, rounds = descend(shards, first, shards.centroids(first), objective)
    terms, coincident = terms_of(choice)
    check_coincident(coincident, objective)
    return Selection(np.sort(choice), terms, terms_of(closest)[0].total, "swaps", rounds)


class ImageShard:
    """Images of the classes first_class ... first_class + n - 1: see `ImageShards`.

    `real` (n, D) are real centroids; `size` is K; without `covers`, coverage is 0.
    """

    def __init__(
        self,
        first_class: int,
        images: Pools,
        real: np.ndarray,
        objective: Objective,
        num_classes: int,
        size: int,
        covers: Sequence[Table] | None = None,
    ):
        check_candidates(images, real, first_class)
        self._ids = slice(first_class, first_class + len(images))
        self._size, self._objective = size, objective
        self._weight = objective.pair_weight(num_classes)
        self._images, self._real = images, real.astype(np.float64)
        none = (np.zeros((1, len(pool))) for pool in images)
        self._coverage = [CoverageChanges(of_class) for of_class in covers or none]

    def closest(self) -> Int[np.ndarray, "n K"]:
        nearest = [
            np.argsort(-(pool @ r), kind="stable") for pool, r in zip(self._images, self._real, strict=True)
        ]
        return np.sort([order[: self._size] for order in nearest])

    def centroids(self, choice: Choice) -> Float32[np.ndarray, "n D"]:
        return np.stack(
            [_unit(pool[chosen]) for pool, chosen in zip(self._images, choice[self._ids], strict=True)]
        )

    def own_terms(self, choice: Choice) -> Float64[np.ndarray, "n 2"]:
        distances = 1 - np.einsum("cd,cd->c", self.centroids(choice).astype(np.float64), self._real)
        logs = own_logs(distances, self._ids.start + np.arange(len(distances)), self._objective)
        own = zip(self._coverage, choice[self._ids], strict=True)
        covered = [covered_share(coverage.covers, chosen) for coverage, chosen in own]
        return np.stack([logs, covered], axis=1)

    def propose(self, history: History, tolerance: float) -> Moves:
        choice, centroids = history.end()
        none = np.zeros(0)
        moves = [Moves(none.astype(int), np.zeros((0, self._size), int), none, none, centroids[:0])]
        for k, before in enumerate(choice[self._ids]):
            label = self._ids.start + k
            others = np.delete(centroids, label, axis=0)
            of_class = self._images[k], self._real[k], others, self._coverage[k]
            pool = _Pool(*of_class, self._objective, self._weight)
            after, gain = pool.improve(before, tolerance)
            if gain > tolerance:
                own = pool.own_cost(after) - pool.own_cost(before)
                move = (label, after, gain, own, _unit(self._images[k][after]))
                moves.append(Moves(*(np.array([value]) for value in move)))
        return Moves.join(moves)


class _Pool:
    """Swaps of one class's images against the centroids of the other classes; products in float64."""

    def __init__(
        self,
        images: Float32[np.ndarray, "N D"],
        real: Float64[np.ndarray, " D"],
        others: Float32[np.ndarray, "C_minus_1 D"],
        coverage: CoverageChanges,
        objective: Objective,
        weight: float,
    ):
        self.coverage, self.epsilon = coverage, objective.epsilon
        self.alpha, self.kappa = objective.alpha, objective.coverage
        self.products = np.column_stack(
            [images.astype(np.float64) @ real, (images @ others.T).astype(np.float64)]
        )  # (N, C): products with the real centroid, then with the others
        self.gram = (images @ images.T).astype(np.float64)
        self.weights = np.concatenate([[objective.alpha], np.full(len(others), -weight)])

    def improve(self, chosen: Chosen, tolerance: float) -> tuple[Chosen, float]:
        """Return `chosen` after up to K best swaps that each gain over `tolerance`, and their total gain."""
        chosen, total = chosen.copy(), 0.0
        for _ in range(len(chosen)):
            free = np.setdiff1d(np.arange(len(self.gram)), chosen)
            if not len(free):
                break
            own = np.zeros((len(chosen), len(free)))
            if self.kappa:
                own = self.kappa * self.coverage.by_swap(chosen, free)
            changes = self._first_order(chosen, free) - own
            last = min(SHORTLIST, changes.size) - 1
            few = np.flatnonzero(changes <= np.partition(changes, last, axis=None)[last])
            gain, out, into = self._best(chosen, free, few, own)
            if gain <= tolerance:
                gain, out, into = self._best(chosen, free, np.arange(changes.size), own)
            if gain <= tolerance:
                break
            chosen[out], total = free[into], total + gain
            chosen.sort()
        return chosen, total

    def own_cost(self, chosen: Chosen) -> float:
        """Return α log(d(c, r) + ε) - κ coverage."""
        cosine = self.products[chosen, 0].sum() / np.sqrt(self.gram[np.ix_(chosen, chosen)].sum())
        covered = covered_share(self.coverage.covers, chosen)
        return self.alpha * np.log(max(1 - cosine, COINCIDENT) + self.epsilon) - self.kappa * covered

    def _best(
        self, chosen: Chosen, free: Free, swaps: Int[np.ndarray, " S"], own: Float64[np.ndarray, "K F"]
    ) -> tuple[float, int, int]:
        """Return the gain and the place of the best of `swaps`, flat indices into (K, F), by the exact L.

        `own` is κ times the change of coverage by every swap.
        """
        best, least = (0, 0), np.inf
        squared = self.gram[np.ix_(chosen, chosen)].sum()
        sums, reach = self.products[chosen].sum(axis=0), self.gram[chosen].sum(axis=0)
        now = self._costs(sums[None], squared)[0]
        block = max(1, BLOCK_VALUES // len(sums))
        for start in range(0, len(swaps), block):
            a, b = np.unravel_index(swaps[start : start + block], own.shape)
            out, into = chosen[a], free[b]
            moved = self.gram[out, out] + self.gram[into, into] - 2 * self.gram[out, into]
            norms = squared + 2 * (reach[into] - reach[out]) + moved
            changes = self._costs(sums - self.products[out] + self.products[into], norms) - now
            changes -= own[a, b]
            k = int(np.argmin(changes))
            if changes[k] < least:
                best, least = (int(a[k]), int(b[k])), float(changes[k])
        return -least, *best

    def _costs(
        self, sums: Float64[np.ndarray, "m C"], squared: Float64[np.ndarray, " m"] | np.float64
    ) -> Float64[np.ndarray, " m"]:
        """Return α log(d(c, r) + ε) - w Σ_j log(d(c, c_j) + ε) from sums of products and squares |s|²."""
        cosines = sums / np.sqrt(squared)[..., None]
        return np.log(np.maximum(1 - cosines, COINCIDENT) + self.epsilon) @ self.weights

    def _first_order(self, chosen: Chosen, free: Free) -> Float64[np.ndarray, "K F"]:
        """Return the change of L, without coverage, by every swap, to first order in the centroid."""
        length = np.sqrt(self.gram[np.ix_(chosen, chosen)].sum())
        cosines = self.products[chosen].sum(axis=0) / length
        slopes = -self.weights / (np.maximum(1 - cosines, COINCIDENT) + self.epsilon)
        along = self.gram[:, chosen].sum(axis=1) / length  # f·c
        values = (self.products @ slopes - along * (cosines @ slopes)) / length
        return values[free] - values[chosen][:, None]


def _unit(rows: Float32[np.ndarray, "K D"]) -> Float32[np.ndarray, " D"]:
    total = rows.astype(np.float64).sum(axis=0)
    return (total / np.linalg.norm(total)).astype(np.float32)
