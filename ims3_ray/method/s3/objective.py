"""Selective Subgroup Sampling (S³): one subgroup a class, close to its real class, far from other choices.

| here | paper | meaning |
|---|---|---|
| `candidates[i]` (G_i, D) | c_{i,g} | unit-length centroids of the subgroups of class i |
| `real` (C, D) | r_i | unit-length centroids of the real images |
| `choice` (C,) | g | the chosen subgroup of each class |
| d(a, b) = 1 - a·b | 1 - σ | cosine distance |
| w | 2β/(C-1) or β | weight of a pair of classes |

    L(g) = α Σ_i log(d(c_{i,g_i}, r_i) + ε) - w Σ_{i<j} log(d(c_{i,g_i}, c_{j,g_j}) + ε)          (Eq. 8-11)

`shard` scores candidates, `rounds` and `walk` minimise L, `proof` bounds it from below.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

Pools = Sequence[Float[np.ndarray, "_ _"]]  # candidates (G_i, D) of each class
Centroids = Float[np.ndarray, "C D"]
Choice = Int[np.ndarray, " C"]

COINCIDENT = 2.0**-20  # a cosine distance below is the rounding of float32 features: the centroids coincide
LOG_COINCIDENT = math.log(1.001 * COINCIDENT)
BLOCK = 1024  # classes a block of a distance matrix


@dataclass(frozen=True)
class Objective:
    """The weights of L; `coverage` is κ, where single images are chosen."""

    alpha: float
    beta: float
    epsilon: float = 0.0
    normalization: Literal["per_class", "none"] = "per_class"
    coverage: float = 0.0

    def pair_weight(self, num_classes: int) -> float:
        """w: 2β/(C-1), so that both terms grow alike with the classes, or β as in the published code."""
        if num_classes < 2:
            return 0.0
        return self.beta if self.normalization == "none" else 2 * self.beta / (num_classes - 1)

    def tolerance(self, num_classes: int) -> float:
        """The least gain that counts: a millionth of a class's weights, above the rounding of float32."""
        return 1e-6 * (self.alpha + self.pair_weight(num_classes) * max(num_classes - 1, 0))


@dataclass(frozen=True)
class Terms:
    """L and its two sums of logarithms: total = α · attraction - w · separation.

    `coverage` sums over the classes the share of real images that the chosen ones cover: see single_images.
    """

    attraction: float
    separation: float
    total: float
    coverage: float = 0.0


@dataclass(frozen=True)
class Selection:
    """A choice of subgroups, its objective, and how far from the best one it can be."""

    choice: Int[np.ndarray, "C ..."]  # (C, K) where images are chosen
    terms: Terms
    start: float  # the objective of the closest-to-real choice
    solver: str
    rounds: int  # of the best start
    best_start: int = 0  # 0: closest to real; r: the r-th restart
    lower_bound: float | None = None  # no choice has a smaller objective; None: not computed
    certificate: str = "none"  # what gave the bound

    @property
    def objective(self) -> float:
        return self.terms.total

    @property
    def gap(self) -> float | None:
        """(L - bound) / |L|."""
        if self.lower_bound is None:
            return None
        missed = self.objective - self.lower_bound
        return missed / abs(self.objective) if missed else 0.0

    @property
    def gap_of_gain(self) -> float | None:
        """(L - bound) / (L of the closest-to-real choice - L); None where nothing was gained."""
        if self.lower_bound is None:
            return None
        missed, gain = self.objective - self.lower_bound, self.start - self.objective
        return 0.0 if not missed else missed / gain if gain > 0 else None


def evaluate(choice: Choice, candidates: Pools, real: Centroids, objective: Objective) -> Terms:
    """L of `choice` by its definition, in double precision.

    Raises CoincidentError where ε is 0 and two of the chosen centroids, or a chosen and a real one, coincide.
    """
    chosen = np.stack([pool[g] for pool, g in zip(candidates, choice, strict=True)]).astype(np.float64)
    distances = 1 - np.einsum("cd,cd->c", chosen, real.astype(np.float64))
    attraction = float(own_logs(distances, np.arange(len(chosen)), objective.epsilon).sum())
    separation, coincident = pair_separation(chosen, objective.epsilon)
    refuse_coincident(coincident)
    total = objective.alpha * attraction - objective.pair_weight(len(chosen)) * separation
    return Terms(attraction, separation, total)


def own_logs(
    distances: Float64[np.ndarray, " R"], classes: Int[np.ndarray, " R"], epsilon: float
) -> Float64[np.ndarray, " R"]:
    """log(d + ε) of distances to the real centroids of `classes`.

    Raises CoincidentError where ε is 0 and a distance is nothing but rounding: such a candidate would be
    chosen whatever the others are.
    """
    if not epsilon and distances.size and distances.min() < COINCIDENT:
        raise CoincidentError(int(classes[distances.argmin()]), None)
    return np.log(np.maximum(distances, 0) + epsilon)


class Separation(NamedTuple):
    total: float  # Σ_{i<j} log(d_ij + ε)
    coincident: tuple[int, int] | None  # where ε is 0: two classes whose centroids coincide


def pair_separation(chosen: Centroids, epsilon: float) -> Separation:
    """Of the centroids of classes 0, 1, …, in double precision, by blocks of rows."""
    chosen, ids, total = chosen.astype(np.float64), np.arange(len(chosen)), 0.0
    coincident: tuple[int, int] | None = None
    for start in range(0, len(chosen), BLOCK):
        rows, others = slice(start, start + BLOCK), slice(start, None)
        logs = np.triu(log_distances(chosen[rows], chosen[others], ids[rows], ids[others], epsilon), 1)
        total += float(logs.sum())
        row, column = np.unravel_index(int(logs.argmin()), logs.shape)
        if not epsilon and coincident is None and logs[row, column] < LOG_COINCIDENT:
            coincident = (start + int(row), start + int(column))
    return Separation(total, coincident)


def log_distances(
    rows: Float[np.ndarray, "R D"],
    columns: Float[np.ndarray, "N D"],
    row_classes: Int[np.ndarray, " R"],
    column_classes: Int[np.ndarray, " N"],
    epsilon: float,
) -> Float[np.ndarray, "R N"]:
    """log(d + ε) of every row to every column, in their own precision; 0 within a class.

    `column_classes` ascends. Where ε is 0, d is at least COINCIDENT: a pair that coincides costs a lot, and
    is refused (`refuse_coincident`) only where it is chosen all the same.
    """
    first = np.searchsorted(column_classes, row_classes, side="left")
    count = np.searchsorted(column_classes, row_classes, side="right") - first
    own_rows = np.repeat(np.arange(len(row_classes)), count)
    own_columns = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    table = rows @ columns.T
    np.subtract(1, table, out=table)
    table[own_rows, own_columns] = 1
    np.maximum(table, 0 if epsilon else COINCIDENT, out=table)
    if epsilon:
        table += table.dtype.type(epsilon)
    np.log(table, out=table)
    table[own_rows, own_columns] = 0
    return table


def refuse_coincident(classes: tuple[int, int] | None) -> None:
    """Raise CoincidentError where there are two chosen centroids that coincide."""
    if classes:
        raise CoincidentError(*classes)


class CoincidentError(ValueError):
    """ε is 0 and a centroid of class `own` equals one of class `other`, or, where None, its real centroid."""

    def __init__(self, own: int, other: int | None):
        super().__init__(own, other)
        self.own, self.other = own, other

    def __str__(self) -> str:
        return self.explain(str)

    def explain(self, name_of: Callable[[int], str]) -> str:
        """One line, with the class ids as `name_of` gives them."""
        other = "its real centroid" if self.other is None else f"one of class {name_of(self.other)}"
        return (
            f"epsilon must be above 0 where centroids coincide: one of class {name_of(self.own)} equals "
            f"{other}; set epsilon to 1e-6, or remove the duplicate images"
        )


def subgroup_centroids(
    features: np.ndarray, subgroups: Int[np.ndarray, " _"], *, label: str
) -> tuple[Int[np.ndarray, " G"], Float32[np.ndarray, "G D"]]:
    """Subgroup ids, ascending, and the centroid of each: the unit-length mean of its unit-length features.

    `features` (N, D) are a class's; `label` names them in errors. Raises ValueError for no rows, NaN, zero
    features, and features that cancel out.
    """
    unit = unit_rows(features, label)
    order = np.argsort(subgroups, kind="stable")
    ids, first = np.unique(subgroups[order], return_index=True)
    sums = np.add.reduceat(unit[order], first, axis=0)
    return ids, unit_rows(sums, f"{label}: the means of the subgroups").astype(np.float32)


def real_centroid(features: np.ndarray, *, label: str) -> Float32[np.ndarray, " D"]:
    """The unit-length mean of a class's `features` (N, D), each brought to unit length: see above."""
    return subgroup_centroids(features, np.zeros(len(features), int), label=label)[1][0]


def unit_rows(features: np.ndarray, label: str) -> Float64[np.ndarray, "N D"]:
    """`features` (N, D) in double precision, each of unit length."""
    features = features.astype(np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"{label}: features must be a table of at least one row and column, not {features.shape}"
        )
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 1e-12)))
    if len(bad):
        raise ValueError(
            f"{label}: row {bad[0]} has length {norms[bad[0], 0]}; remove it or extract its feature again"
        )
    return features / norms
