"""Beyond the paper: choose K single images per class instead of one of its ready-made subgroups.

| here | meaning |
|---|---|
| `images[i]` (N, D) | f_n, unit-length features of the images of class i |
| `choice` (C, K) | S_i, the chosen images of each class |
| c_i | s_i / |s_i|, s_i = Σ_{n in S_i} f_n: the centroid of a choice |
| `covers[i]` (N, M) | v(n, x): how well image n covers each of M real images x |
| κ | weight of coverage |

    L(S) = α Σ_i log(d(c_i, r_i) + ε) - w Σ_{i<j} log(d(c_i, c_j) + ε) - κ Σ_i coverage(S_i)
    coverage(S) = mean over real x of max_{n in S} v(n, x), v(n, x) = 1 - |f_n - x| / 2
The first two terms are those of `objective`. Coverage is what a centroid does not measure: k-medoids among
the candidates (Kaufman & Rousseeuw 1990).

Each class swaps images one by one against the centroids of the other classes. Classes move together in the
rounds of `distributed_descent`. No single swap improves the result.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from .distributed_descent import descend
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
BLOCK_COVERS = 2**24  # values of a block of candidates × real images
Chosen = Int[np.ndarray, " K"]
Choice = Int[np.ndarray, "C K"]
Table = Float64[np.ndarray, "N M"]


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


def closeness_table(images: Float[np.ndarray, "N D"], real: Float[np.ndarray, "M D"]) -> Table:
    """Return 1 - |f - x| / 2, in [0, 1], of each image and each real image; features of unit length."""
    table = images.astype(np.float64) @ real.astype(np.float64).T
    table *= -2  # in place: a large class's table takes a gigabyte
    table += 2
    np.sqrt(np.maximum(table, 0, out=table), out=table)
    table /= -2
    table += 1
    return table


def covered_share(covers: Table, chosen: Chosen) -> float:
    """Return coverage(S) of the rows `chosen`."""
    return float(covers[chosen].max(axis=0).mean())


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
        self._covers = [np.zeros((len(pool), 1)) for pool in images] if covers is None else covers

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
        own = zip(self._covers, choice[self._ids], strict=True)
        covered = [covered_share(covers, chosen) for covers, chosen in own]
        return np.stack([logs, covered], axis=1)

    def propose(self, history: History, tolerance: float) -> Moves:
        choice, centroids = history.end()
        none = np.zeros(0)
        moves = [Moves(none.astype(int), np.zeros((0, self._size), int), none, none, centroids[:0])]
        for k, before in enumerate(choice[self._ids]):
            label = self._ids.start + k
            others = np.delete(centroids, label, axis=0)
            of_class = self._images[k], self._real[k], others, self._covers[k]
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
        covers: Float64[np.ndarray, "N M"],
        objective: Objective,
        weight: float,
    ):
        self.covers, self.epsilon = covers, objective.epsilon
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
            changes = self._first_order(chosen, free)
            few = np.sort(np.argsort(changes, axis=None, kind="stable")[:SHORTLIST])
            gain, out, into = self._best(chosen, free, few)
            if gain <= tolerance:
                gain, out, into = self._best(chosen, free, np.arange(changes.size))
            if gain <= tolerance:
                break
            chosen[out], total = free[into], total + gain
            chosen.sort()
        return chosen, total

    def own_cost(self, chosen: Chosen) -> float:
        """Return α log(d(c, r) + ε) - κ coverage."""
        cosine = self.products[chosen, 0].sum() / np.sqrt(self.gram[np.ix_(chosen, chosen)].sum())
        covered = covered_share(self.covers, chosen)
        return self.alpha * np.log(max(1 - cosine, COINCIDENT) + self.epsilon) - self.kappa * covered

    def _best(
        self, chosen: Chosen, free: Int[np.ndarray, " F"], swaps: Int[np.ndarray, " S"]
    ) -> tuple[float, int, int]:
        """Return the gain and the place of the best of `swaps`, flat indices into (K, F), by the exact L."""
        best, least = (0, 0), np.inf
        squared = self.gram[np.ix_(chosen, chosen)].sum()
        sums, reach = self.products[chosen].sum(axis=0), self.gram[chosen].sum(axis=0)
        coverage = self._coverage_changes(chosen, free)
        now = self._costs(sums[None], squared)[0]
        block = max(1, BLOCK_VALUES // len(sums))
        for start in range(0, len(swaps), block):
            a, b = np.unravel_index(swaps[start : start + block], coverage.shape)
            out, into = chosen[a], free[b]
            moved = self.gram[out, out] + self.gram[into, into] - 2 * self.gram[out, into]
            norms = squared + 2 * (reach[into] - reach[out]) + moved
            changes = self._costs(sums - self.products[out] + self.products[into], norms) - now
            changes -= self.kappa * coverage[a, b]
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

    def _first_order(self, chosen: Chosen, free: Int[np.ndarray, " F"]) -> Float64[np.ndarray, "K F"]:
        """Return the change of L by every swap, to first order in the centroid."""
        length = np.sqrt(self.gram[np.ix_(chosen, chosen)].sum())
        cosines = self.products[chosen].sum(axis=0) / length
        slopes = -self.weights / (np.maximum(1 - cosines, COINCIDENT) + self.epsilon)
        along = self.gram[:, chosen].sum(axis=1) / length  # f·c
        values = (self.products @ slopes - along * (cosines @ slopes)) / length
        return values[free] - values[chosen][:, None] - self.kappa * self._coverage_changes(chosen, free)

    def _coverage_changes(self, chosen: Chosen, free: Int[np.ndarray, " F"]) -> Float64[np.ndarray, "K F"]:
        if not self.kappa:
            return np.zeros((len(chosen), len(free)))
        return coverage_changes(self.covers, chosen, free)


def coverage_changes(
    covers: Table, chosen: Chosen, free: Int[np.ndarray, " F"]
) -> Float64[np.ndarray, "K F"]:
    """Return the change of coverage(S) if one of `chosen` is replaced by one of `free`.

    If the replaced image was a real image's best, its second best or the new one takes over; otherwise the
    new one can only add (Schubert & Rousseeuw 2019, FastPAM1).
    """
    values = np.sort(covers[chosen], axis=0)
    best = values[-1]
    second = values[-2] if len(chosen) > 1 else np.zeros_like(best)
    is_best = (covers[chosen].argmax(axis=0) == np.arange(len(chosen))[:, None]).astype(np.float64)
    blocks: list[np.ndarray] = []
    for rows in np.array_split(free, -(-len(free) * len(best) // BLOCK_COVERS)):
        new = covers[rows]
        gained = np.maximum(new - best, 0).sum(axis=1)
        taken_over = np.minimum(np.maximum(second, new) - best, 0)  # (F, M), if the best is replaced
        blocks.append(gained + is_best @ taken_over.T)
    return np.concatenate(blocks, axis=1) / len(best)


def _unit(rows: Float32[np.ndarray, "K D"]) -> Float32[np.ndarray, " D"]:
    total = rows.astype(np.float64).sum(axis=0)
    return (total / np.linalg.norm(total)).astype(np.float32)
