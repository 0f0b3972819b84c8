"""The objective of Selective Subgroup Sampling (S³): subgroups close to their class and far from the others.

| here | paper | meaning |
|---|---|---|
| `candidates[i]` (G_i, D) | c_{i,g} | unit-length centroids of the subgroups of class i |
| `real` (C, D) | r_i | unit-length centroids of the real images |
| `choice` (C,) | g | the chosen subgroup of each class |
| d(a, b) = 1 - a·b | 1 - σ | cosine distance |
| w | 2β/(C-1) or β | weight of a pair of classes |

    L(g) = α Σ_i log(d(c_{i,g_i}, r_i) + ε) - w Σ_{i<j} log(d(c_{i,g_i}, c_{j,g_j}) + ε)          (Eq. 8–11)

`shard` scores candidates, `descent` and `distributed_descent` minimise L, `bound` bounds L from below.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

Pools = Sequence[Float[np.ndarray, "_ _"]]  # per class the candidates (G_i, D)
Centroids = Float[np.ndarray, "C D"]
Choice = Int[np.ndarray, " C"]

COINCIDENT = 2.0**-20  # centroids coincide if their cosine distance is smaller: float32 rounding
LOG_COINCIDENT = math.log(1.001 * COINCIDENT)
BLOCK = 1024  # classes per block of a distance matrix


@dataclass(frozen=True)
class Objective:
    """The weights of L; `coverage` is κ of `image_selection`."""

    alpha: float
    beta: float
    epsilon: float = 0.0
    normalization: Literal["per_class", "none"] = "per_class"
    coverage: float = 0.0

    def pair_weight(self, num_classes: int) -> float:
        """Return w: 2β/(C-1), so that both terms grow with C alike, or β as in the published code."""
        if num_classes < 2:
            return 0.0
        return self.beta if self.normalization == "none" else 2 * self.beta / (num_classes - 1)

    def tolerance(self, num_classes: int) -> float:
        """Return the smallest gain that counts: a millionth of a class's weights, above float32 rounding."""
        return 1e-6 * (self.alpha + self.pair_weight(num_classes) * max(num_classes - 1, 0))


@dataclass(frozen=True)
class Terms:
    """L and its sums: total = α · attraction - w · separation - κ · coverage.

    `coverage` is the sum of the classes' coverage: see `image_selection`.
    """

    attraction: float
    separation: float
    total: float
    coverage: float = 0.0


@dataclass(frozen=True)
class Selection:
    """A choice per class, its objective, and a proven bound on the best objective."""

    choice: Int[np.ndarray, "C ..."]  # (C,) candidates, or (C, K) images
    terms: Terms
    start: float  # objective of the closest-to-real choice
    solver: str
    rounds: int  # of the best start
    lower_bound: float | None = None  # no choice has a smaller objective; None if not computed
    certificate: str = "none"  # method of the bound

    @property
    def objective(self) -> float:
        return self.terms.total

    @property
    def gap(self) -> float | None:
        """(L - bound) / |L|; None without a bound."""
        if self.lower_bound is None:
            return None
        missed = self.objective - self.lower_bound
        return missed / abs(self.objective) if missed else 0.0

    @property
    def gap_of_gain(self) -> float | None:
        """(L - bound) / (start - L); None without a bound or a gain."""
        if self.lower_bound is None:
            return None
        missed, gain = self.objective - self.lower_bound, self.start - self.objective
        return 0.0 if not missed else missed / gain if gain > 0 else None


def evaluate(choice: Choice, candidates: Pools, real: Centroids, objective: Objective) -> Terms:
    """Return L of `choice` by its definition, in double precision.

    Raises CoincidentError if ε is 0 and two chosen centroids, or a chosen and its real centroid, coincide.
    """
    chosen = pick(candidates, choice).astype(np.float64)
    distances = 1 - np.einsum("cd,cd->c", chosen, real.astype(np.float64))
    attraction = float(own_logs(distances, np.arange(len(chosen)), objective).sum())
    separation, coincident = pair_separation(chosen, objective.epsilon)
    check_coincident(coincident, objective)
    total = objective.alpha * attraction - objective.pair_weight(len(chosen)) * separation
    return Terms(attraction, separation, total)


def pick(candidates: Pools, choice: Choice) -> Centroids:
    """Return the centroid that each class chooses."""
    return np.stack([pool[g] for pool, g in zip(candidates, choice, strict=True)])


def own_logs(
    distances: Float64[np.ndarray, " R"], classes: Int[np.ndarray, " R"], objective: Objective
) -> Float64[np.ndarray, " R"]:
    """Return log(d + ε) of distances to the real centroids of `classes`.

    Raises CoincidentError if only ε is 0 and a distance is rounding only: log d would outweigh all else.
    """
    epsilon = objective.epsilon
    if objective.alpha and not epsilon and distances.size and distances.min() < COINCIDENT:
        raise CoincidentError(int(classes[distances.argmin()]), None)
    return np.log(np.maximum(distances, 0 if epsilon else COINCIDENT) + epsilon)


def pair_separation(chosen: Centroids, epsilon: float) -> tuple[float, tuple[int, int] | None]:
    """Return Σ_{i<j} log(d_ij + ε) in double precision, and two classes that coincide if ε is 0."""
    chosen, ids, total = chosen.astype(np.float64), np.arange(len(chosen)), 0.0
    coincident: tuple[int, int] | None = None
    for start in range(0, len(chosen), BLOCK):
        rows, others = slice(start, start + BLOCK), slice(start, None)
        logs = np.triu(log_distances(chosen[rows], chosen[others], ids[rows], ids[others], epsilon), 1)
        total += float(logs.sum())
        row, column = np.unravel_index(int(logs.argmin()), logs.shape)
        if not epsilon and coincident is None and logs[row, column] < LOG_COINCIDENT:
            coincident = (start + int(row), start + int(column))
    return total, coincident


def log_distances(
    rows: Float[np.ndarray, "R D"],
    columns: Float[np.ndarray, "N D"],
    row_classes: Int[np.ndarray, " R"],
    column_classes: Int[np.ndarray, " N"],
    epsilon: float,
) -> Float[np.ndarray, "R N"]:
    """Return log(d + ε) of every row to every column, in their own precision; 0 within a class.

    `column_classes` ascends. If ε is 0, d is at least COINCIDENT: a coincident pair costs a lot, and is an
    error (`check_coincident`) only if it is chosen.
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


def check_coincident(classes: tuple[int, int] | None, objective: Objective) -> None:
    """Raise CoincidentError if two chosen centroids coincide and their separation counts."""
    if classes and objective.beta:
        raise CoincidentError(*classes)


class CoincidentError(ValueError):
    """ε is 0, and a centroid of class `own` equals one of class `other`, or its real one if None."""

    def __init__(self, own: int, other: int | None):
        super().__init__(own, other)
        self.own, self.other = own, other

    def __str__(self) -> str:
        return self.explain(str)

    def explain(self, name_of: Callable[[int], str]) -> str:
        """Return one line for the user, with class names by `name_of`."""
        other = "its real centroid" if self.other is None else f"one of class {name_of(self.other)}"
        return (
            f"epsilon must be above 0 if centroids coincide: one of class {name_of(self.own)} equals "
            f"{other}; set epsilon to 1e-6, or remove the duplicate images"
        )


def subgroup_centroids(
    features: np.ndarray, subgroups: Int[np.ndarray, " _"], *, label: str
) -> tuple[Int[np.ndarray, " G"], Float32[np.ndarray, "G D"]]:
    """Return the ascending subgroup ids and their centroids: unit-length means of unit-length features.

    `features` (N, D) are those of one class; `label` names them in errors. Raises ValueError for no rows,
    NaN, zero features, and features that cancel out.
    """
    unit = unit_rows(features, label)
    order = np.argsort(subgroups, kind="stable")
    ids, first = np.unique(subgroups[order], return_index=True)
    sums = np.add.reduceat(unit[order], first, axis=0)
    return ids, unit_rows(sums, f"{label}: the means of the subgroups").astype(np.float32)


def real_centroid(features: np.ndarray, *, label: str) -> Float32[np.ndarray, " D"]:
    """Return the unit-length mean of a class's `features` (N, D), each scaled to unit length."""
    return subgroup_centroids(features, np.zeros(len(features), int), label=label)[1][0]


def unit_rows(features: np.ndarray, label: str) -> Float64[np.ndarray, "N D"]:
    """Return `features` (N, D) in double precision, each scaled to unit length; see above for errors."""
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
