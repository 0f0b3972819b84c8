"""Groups of classes against each other: what the pairs of two groups give to the costs of their classes.

| here | meaning |
|---|---|
| n, m | classes of one group and of another |
| G, H | the most subgroups that a class of either has |
| `costs` (G, n) | of each subgroup of each class, in units of w and in double precision |
| `choice` (n,), `chosen` (C, D) | g*, what a group's classes chose, and the centroids chosen in all classes |

Classes with fewer subgroups than G are filled with copies of their first one, which cost ABSENT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from ims3_ray.method.s3.objective import BLOCK, COINCIDENT, log_distances
from ims3_ray.method.s3.shard import offsets_of, pick

ABSENT = 1e12
TILE = 64  # classes whose pairs are in memory at a time
Costs = Float64[np.ndarray, "G n"]
Rounds = list[tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"]]]


@dataclass(frozen=True)
class Group:
    """The candidates (G_i, D) of the classes first_class, first_class + 1, …, and their attractions."""

    first_class: int
    candidates: Sequence[Float32[np.ndarray, "_ _"]]
    attractions: Float64[np.ndarray, " R"]

    def num_candidates(self) -> int:
        """R."""
        return len(self.attractions)

    def closest(self, alpha: float) -> float:
        """Σ_i min_g θ_i(g)."""
        starts = offsets_of(np.array([len(pool) for pool in self.candidates]))[:-1]
        return alpha * float(np.minimum.reduceat(self.attractions, starts).sum())

    def chosen(self, choice: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D"]:
        """The centroids that `choice` selects."""
        return pick(self.candidates, choice)

    def padded(self) -> tuple[Float32[np.ndarray, "G n D"], Costs]:
        """Candidates and attractions, infinite where a class has no such subgroup."""
        sizes = np.array([len(pool) for pool in self.candidates])
        places = np.arange(sizes.max())[:, None]
        rows = np.cumsum(sizes) - sizes + np.where(places < sizes, places, 0)
        attractions = np.where(places < sizes, self.attractions[rows], np.inf)
        return np.concatenate(self.candidates)[rows], attractions


def linear_costs(
    group: Group,
    choice: Int[np.ndarray, " n"],
    chosen: Float[np.ndarray, "C D"],
    ratio: float,
    epsilon: float,
) -> Costs:
    """θ_i(g) + Σ_j [θ_ij(g, g*_j) - ½ θ_ij(g*_i, g*_j)]; ratio = α / w."""
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


def handshake(
    a: Group,
    b: Group,
    choice_a: Int[np.ndarray, " n"],
    choice_b: Int[np.ndarray, " m"],
    cost_a: Float64[np.ndarray, "G n"],
    cost_b: Float64[np.ndarray, "H m"],
    epsilon: float,
) -> tuple[Float64[np.ndarray, "G n"], Float64[np.ndarray, "H m"]]:
    """The costs of two groups after every pair between them, or within one group, gave what it could."""
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


def shake(
    costs: Float64[np.ndarray, "G H n"], a: Float64[np.ndarray, "G n"], b: Float64[np.ndarray, "H n"]
) -> tuple[Float64[np.ndarray, "G n"], Float64[np.ndarray, "H n"]]:
    """The MPLP++ handshake of n pairs: all of `costs`, `a` and `b` into new a and b. `costs` is overwritten.

    Half of what a candidate of the first class costs at least goes to it, then all that is left to the second
    class, then the rest to the first: the costs that stay are at least 0.
    """
    costs += a[:, None]
    costs += b
    half = 0.5 * costs.min(axis=1)
    costs -= half[:, None]
    b = costs.min(axis=0)
    costs -= b
    return half + costs.min(axis=1), b


@lru_cache(maxsize=64)
def matchings(num: int, num_other: int | None) -> Rounds:
    """Rounds of disjoint pairs (i, j): range(num) x range(num_other), or all i < j < num where None."""
    if num_other is not None:
        most = max(num, num_other)
        i = np.arange(most)
        rounds = [(i, (i + shift) % most) for shift in range(most)]
        return [(i[keep], j[keep]) for i, j in rounds for keep in [(i < num) & (j < num_other)]]
    even = num + num % 2
    circle = np.arange(even)
    rounds: Rounds = []
    for _ in range(even - 1):
        first, second = np.sort([circle[: even // 2], circle[: even // 2 - 1 : -1]], axis=0)
        rounds.append((first[second < num], second[second < num]))
        circle = np.concatenate([circle[:1], circle[-1:], circle[1:-1]])
    return rounds


def _tile_pairs(num_a: int, num_b: int) -> list[tuple[slice, slice]]:
    """Slices of TILE classes: every one of the first group with every one of the second."""
    tiles = [[slice(s, min(s + TILE, n)) for s in range(0, n, TILE)] for n in (num_a, num_b)]
    return [(i, j) for i in tiles[0] for j in tiles[1]]


def _residual_costs(
    rows: Float32[np.ndarray, "G n D"],
    columns: Float32[np.ndarray, "H m D"],
    choice_a: Int[np.ndarray, " n"],
    choice_b: Int[np.ndarray, " m"],
    epsilon: float,
) -> Float32[np.ndarray, "G n H m"]:
    """θ_ij(g, h) / w once linearised at the choices."""
    (size_a, num_a, width), (size_b, num_b, _) = rows.shape, columns.shape
    logs = clipped_logs(rows.reshape(-1, width) @ columns.reshape(-1, width).T, epsilon)
    costs = np.negative(logs, out=logs).reshape(size_a, num_a, size_b, num_b)
    to_chosen = costs[:, :, choice_b, np.arange(num_b)]  # (G, n, m)
    from_chosen = costs[choice_a, np.arange(num_a)]  # (n, H, m)
    both = to_chosen[choice_a, np.arange(num_a)]  # (n, m)
    costs -= to_chosen[:, :, None]
    costs -= from_chosen - both[:, None]
    return costs


def clipped_logs(products: Float[np.ndarray, "*S"], epsilon: float) -> Float[np.ndarray, "*S"]:
    """log(1 - products + ε), in place; distances are at least COINCIDENT, which only lowers the costs."""
    np.subtract(1, products, out=products)
    np.maximum(products, COINCIDENT, out=products)
    products += products.dtype.type(epsilon)
    return np.log(products, out=products)
