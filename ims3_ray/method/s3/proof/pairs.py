"""Groups of classes against each other: what the pairs of two groups give to the costs of their classes.

Costs are in units of w, in double precision, and lie as (G, n): subgroup, class of the group. Classes with
fewer subgroups than the largest of their group are filled with copies of their first one, which cost ABSENT.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ims3_ray.method.s3.objective import BLOCK, COINCIDENT, log_distances

ABSENT = 1e12
TILE = 64  # classes whose pairs are in memory at a time


@dataclass(frozen=True)
class Group:
    """The candidates (G_i, D) of the classes first_class, first_class + 1, …, and their attractions (R,): see
    Shard.
    """

    first_class: int
    candidates: list[np.ndarray]
    attractions: np.ndarray

    def num_candidates(self) -> int:
        """R."""
        return len(self.attractions)

    def closest(self, alpha: float) -> float:
        """Σ_i min_g θ_i(g)."""
        starts = np.cumsum([0, *map(len, self.candidates[:-1])])
        return alpha * float(np.minimum.reduceat(self.attractions, starts).sum())

    def chosen(self, choice) -> np.ndarray:
        """The centroids (n, D) that `choice` (n,) selects."""
        return np.stack([pool[g] for pool, g in zip(self.candidates, choice, strict=True)])

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Candidates (G, n, D) and attractions (G, n), infinite where a class has no such subgroup."""
        sizes = np.array([len(pool) for pool in self.candidates])
        filled = np.minimum(np.arange(sizes.max())[:, None], sizes - 1)
        filled[np.arange(sizes.max())[:, None] >= sizes] = 0
        rows = np.cumsum(sizes) - sizes + filled
        attractions = np.where(np.arange(sizes.max())[:, None] < sizes, self.attractions[rows], np.inf)
        return np.concatenate(self.candidates)[rows], attractions


def linear_costs(group: Group, choice, chosen, ratio: float, epsilon: float) -> np.ndarray:
    """θ_i(g) + Σ_j [θ_ij(g, g*_j) - ½ θ_ij(g*_i, g*_j)], (G, n), for the `chosen` centroids (C, D); ratio = α
    / w.
    """
    candidates, attractions = group.padded()
    size, (num, width) = candidates.shape[0], candidates.shape[1:]
    ids = group.first_class + np.tile(np.arange(num), size)
    sums = np.zeros(size * num)
    for start in range(0, len(chosen), BLOCK):
        block = chosen[start : start + BLOCK]
        logs = log_distances(
            candidates.reshape(-1, width), block, ids, start + np.arange(len(block)), epsilon
        )
        sums -= logs.sum(axis=1, dtype=np.float64)
    sums = sums.reshape(size, num)
    return np.where(
        np.isinf(attractions), ABSENT, ratio * attractions + sums - 0.5 * sums[choice, np.arange(num)]
    )


def half_pair(a: Group, b: Group, choice_a, choice_b, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """½ Σ_j min_h of the residual costs, (G, n), of every candidate of one group over the classes j of the
    other.
    """
    (rows, cost_a), (columns, cost_b) = a.padded(), b.padded()
    share_a, share_b = np.zeros(cost_a.shape), np.zeros(cost_b.shape)
    for i, j in _tile_pairs(len(choice_a), len(choice_b)):
        costs = _residual_costs(rows[:, i], columns[:, j], choice_a[i], choice_b[j], epsilon)
        if a.first_class == b.first_class and i == j:
            own = np.arange(costs.shape[1])
            costs[:, own, :, own] = 0
        share_a[:, i] += 0.5 * costs.min(axis=2).sum(axis=2, dtype=np.float64)
        share_b[:, j] += 0.5 * costs.min(axis=0).sum(axis=0, dtype=np.float64)
    return share_a, share_b


def handshake(
    a: Group, b: Group, choice_a, choice_b, cost_a, cost_b, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """The costs (G, n) of two groups after every pair between them, or within one group, gave what it could."""
    rows, columns = a.padded()[0], b.padded()[0]
    cost_a = cost_a.copy()
    cost_b = cost_a if a.first_class == b.first_class else cost_b.copy()
    for i, j in _tile_pairs(len(choice_a), len(choice_b)):
        within = cost_a is cost_b and i == j
        if cost_a is cost_b and j.start < i.start:
            continue
        table = _residual_costs(rows[:, i], columns[:, j], choice_a[i], choice_b[j], epsilon)
        (size_a, num_a), (size_b, num_b) = table.shape[:2], table.shape[2:]
        table = table.transpose(0, 2, 1, 3).reshape(size_a, size_b, num_a * num_b)
        for one, other in matchings(num_a, None if within else num_b):
            costs = np.take(table, one * num_b + other, axis=2).astype(np.float64)
            one, other = i.start + one, j.start + other
            cost_a[:, one], cost_b[:, other] = shake(costs, cost_a[:, one], cost_b[:, other])
    return cost_a, cost_b


def shake(costs, a, b) -> tuple[np.ndarray, np.ndarray]:
    """The MPLP++ handshake of n pairs: all of `costs` (G, H, n), `a` (G, n), `b` (H, n) into new a and b.

    Half of what a candidate of the first class costs at least goes to it, then all that is left to the second
    class, then the rest to the first: the costs that stay are at least 0. `costs` is overwritten.
    """
    costs += a[:, None]
    costs += b
    half = 0.5 * costs.min(axis=1)
    costs -= half[:, None]
    b = costs.min(axis=0)
    costs -= b
    return half + costs.min(axis=1), b


@lru_cache(maxsize=64)
def matchings(num: int, num_other: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rounds of disjoint pairs (i, j): range(num) x range(num_other), or all i < j < num where that is None."""
    if num_other is not None:
        most = max(num, num_other)
        i = np.arange(most)
        rounds = [(i, (i + shift) % most) for shift in range(most)]
        return [(i[keep], j[keep]) for i, j in rounds for keep in [(i < num) & (j < num_other)]]
    even = num + num % 2
    circle, rounds = np.arange(even), []
    for _ in range(even - 1):
        pairs = np.sort([circle[: even // 2], circle[: even // 2 - 1 : -1]], axis=0)
        rounds.append(tuple(pairs[:, pairs[1] < num]))
        circle = np.concatenate([circle[:1], circle[-1:], circle[1:-1]])
    return rounds


def _tile_pairs(num_a: int, num_b: int):
    """Slices of TILE classes: every one of the first group with every one of the second."""
    tiles = [[slice(s, min(s + TILE, n)) for s in range(0, n, TILE)] for n in (num_a, num_b)]
    return [(i, j) for i in tiles[0] for j in tiles[1]]


def _residual_costs(rows, columns, choice_a, choice_b, epsilon) -> np.ndarray:
    """θ_ij(g, h) / w once linearised at the choices, (G, n, H, m) float32, of candidates (G, n, D) and (H, m,
    D).

    Distances are at least COINCIDENT here: that only lowers θ_ij.
    """
    (size_a, num_a, width), (size_b, num_b, _) = rows.shape, columns.shape
    logs = rows.reshape(-1, width) @ columns.reshape(-1, width).T
    np.subtract(1, logs, out=logs)
    np.maximum(logs, np.float32(COINCIDENT), out=logs)
    logs += np.float32(epsilon)
    costs = np.negative(np.log(logs, out=logs), out=logs).reshape(size_a, num_a, size_b, num_b)
    to_chosen = costs[:, :, choice_b, np.arange(num_b)]  # (G, n, m)
    from_chosen = costs[choice_a, np.arange(num_a)]  # (n, H, m)
    both = to_chosen[choice_a, np.arange(num_a)]  # (n, m)
    costs -= to_chosen[:, :, None]
    costs -= from_chosen - both[:, None]
    return costs
