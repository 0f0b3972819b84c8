"""Pruned scores: a class's nearest other classes exactly, all the far ones through their mean.

    Σ_{j far} log(d(c, c_j) + ε)  ≈  F · log(1 - c·m + ε),   m the mean of the F far chosen centroids.
An approximation of what shards propose alone: the moves are still accepted by their exact change of L.
"""

import faiss
import numpy as np

from .objective import COINCIDENT, Objective
from .shard import History, Shard


class NeighbourShard(Shard):
    """A Shard that compares its candidates with the centroids of the `neighbours` nearest classes and one
    mean.

    Which classes are near is settled by the centroids that a history begins with.
    """

    def __init__(self, first_class, candidates, real, objective: Objective, num_classes, neighbours: int):
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {neighbours}")
        super().__init__(first_class, candidates, real, objective, num_classes)
        self._neighbours, self._near = neighbours, None

    def _follow(self, history: History) -> None:
        if self._followed is None or not np.array_equal(self._followed.choice, history.choice):
            own = history.centroids[self._first : self._first + len(self._candidates)]
            self._near = nearest_classes(history.centroids, own, self._first, self._neighbours)
        choice, self._centroids = history.end()
        self._choice = choice[self._first : self._first + len(self._candidates)]
        total = self._centroids.sum(axis=0, dtype=np.float64)
        sums = [
            pruned_sums(pool, i, near, self._centroids, total, self._objective.epsilon)
            for i, (pool, near) in enumerate(zip(self._candidates, self._near, strict=True), self._first)
        ]
        self._separations, self._followed = np.concatenate(sums), history


def pruned_sums(pool, i: int, near, centroids, total, epsilon: float) -> np.ndarray:
    """Σ_j log(d + ε) (G,) of class i's candidates to `centroids` (C, D), whose sum is `total`: `near` ones
    exactly.
    """
    close = centroids[near]
    distances = np.maximum(1 - pool @ close.T, np.float32(COINCIDENT))
    logs = np.log(distances + np.float32(epsilon)).sum(axis=1, dtype=np.float64)
    num_far = len(centroids) - 1 - len(near)
    if num_far:
        mean = (total - close.sum(axis=0, dtype=np.float64) - centroids[i]) / num_far
        logs += num_far * np.log(1 - pool @ mean + epsilon)
    return logs


def nearest_classes(centroids, own, first_class: int, neighbours: int) -> np.ndarray:
    """The `neighbours` classes (n, neighbours) whose `centroids` (C, D) are nearest to those of `own` (n, D)."""
    count = min(neighbours, len(centroids) - 1)
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    found = index.search(np.ascontiguousarray(own), count + 1)[1]
    rows = []
    for i, row in enumerate(found, first_class):
        itself = np.flatnonzero(row == i)
        rows.append(np.delete(row, itself[0] if len(itself) else count))
    return np.array(rows)
