"""Selective Subgroup Sampling (S³): one subgroup per class, close to its real class and far from the other
choices.

| here | paper | meaning |
|---|---|---|
| `candidates[i]` (G_i, D) | c_{i,g} | unit-length centroids of the subgroups of class i |
| `real` (C, D) | r_i | unit-length centroids of the real images |
| `choice` (C,) | g | the chosen subgroup of each class |
| d(a, b) = 1 - a·b | 1 - σ | cosine distance |
| w | 2β/(C-1) or β | weight of a pair of classes |

    L(g) = α Σ_i log(d(c_{i,g_i}, r_i) + ε) - w Σ_{i<j} log(d(c_{i,g_i}, c_{j,g_j}) + ε)          (Eq. 8-11)

`selection_shard.py` scores candidates, `selection_rounds.py` minimises L, `certificate.py` bounds it from
below.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

# a cosine distance below this is the rounding of float32 features: the two centroids coincide
COINCIDENT = 2.0**-20
BLOCK = 1024  # classes a block of a distance matrix


@dataclass(frozen=True)
class Objective:
    """The weights and variants of L. `partners` "pool" measures the distance to all candidates of the other
    classes.
    """

    alpha: float
    beta: float
    epsilon: float = 0.0
    normalization: Literal["per_class", "none"] = "per_class"
    partners: Literal["selected", "pool"] = "selected"

    def __post_init__(self):
        for name in ("alpha", "beta", "epsilon"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, not {value}")
        for name, choices in (("normalization", ("per_class", "none")), ("partners", ("selected", "pool"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")

    def pair_weight(self, num_classes: int) -> float:
        """w: 2β/(C-1), so that both terms grow alike with the number of classes, or β as in the published
        code.
        """
        if num_classes < 2:
            return 0.0
        return self.beta if self.normalization == "none" else 2 * self.beta / (num_classes - 1)

    def tolerance(self, num_classes: int) -> float:
        """The least gain that counts: a millionth of one class's weights, above the rounding of float32
        products.
        """
        return 1e-6 * (self.alpha + self.pair_weight(num_classes) * max(num_classes - 1, 0))


@dataclass(frozen=True)
class Terms:
    """L and its two sums of logarithms: total = α · attraction - w · separation.

    `coverage` is a sum over the classes of the share of real images that the chosen ones cover:
    selection_images.py.
    """

    attraction: float
    separation: float
    total: float
    coverage: float = 0.0


@dataclass(frozen=True)
class Selection:
    """A choice of subgroups, its objective, and how far from the best one it can be."""

    choice: np.ndarray  # (C,) int64; (C, K) where images are chosen
    terms: Terms
    start: float  # the objective of the closest-to-real choice
    lower_bound: float | None  # no choice has a smaller objective; None: not computed
    certificate: str  # what gave the bound
    solver: str
    rounds: int  # of the best start
    best_start: int  # 0: closest to real; r: the r-th restart
    settings: dict = field(default_factory=dict)

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


def evaluate(choice, candidates, real, objective: Objective) -> Terms:
    """L of `choice` (C,) by its definition, in double precision.

    Raises ValueError where ε is 0 and two of the centroids coincide.
    """
    chosen = np.stack([candidates[i][g] for i, g in enumerate(choice)]).astype(np.float64)
    num_classes, ids = len(chosen), np.arange(len(chosen))
    distances = 1 - np.einsum("cd,cd->c", chosen, np.asarray(real, dtype=np.float64))
    refuse_coincident(distances[:, None], ids, None, objective.epsilon)
    attraction = float(np.log(np.maximum(distances, 0) + objective.epsilon).sum())
    if objective.partners == "pool":
        separation = _pool_separation(chosen, candidates, objective.epsilon)
    else:
        separation = pair_separation(chosen, objective.epsilon)
    total = objective.alpha * attraction - objective.pair_weight(num_classes) * separation
    return Terms(attraction, separation, total)


def pair_separation(chosen: np.ndarray, epsilon: float) -> float:
    """Σ_{i<j} log(d_ij + ε) of centroids (C, D), in double precision, by blocks of rows."""
    chosen, ids, total = chosen.astype(np.float64), np.arange(len(chosen)), 0.0
    for start in range(0, len(chosen), BLOCK):
        rows, others = slice(start, start + BLOCK), slice(start, None)
        logs = log_distances(chosen[rows], chosen[others], ids[rows], ids[others], epsilon)
        total += float(np.triu(logs, 1).sum())
    return total


def _pool_separation(chosen, candidates, epsilon) -> float:
    """½ Σ_i Σ_{j≠i} mean_h log(d(c_{i,g_i}, c_{j,h}) + ε): each class against the average candidate of the
    others.
    """
    ids, total = np.arange(len(chosen)), 0.0
    for j, pool in enumerate(candidates):
        logs = log_distances(chosen, pool.astype(np.float64), ids, np.full(len(pool), j), epsilon)
        total += 0.5 * float(logs.mean(axis=1).sum())
    return total


def log_distances(rows, columns, row_classes, column_classes, epsilon) -> np.ndarray:
    """log(d + ε) of every row (R, D) to every column (N, D), in their own precision; 0 within a class.

    `column_classes` (N,) ascends. Raises ValueError where ε is 0 and a row coincides with a column of another
    class.
    """
    first = np.searchsorted(column_classes, row_classes, side="left")
    count = np.searchsorted(column_classes, row_classes, side="right") - first
    own_rows = np.repeat(np.arange(len(row_classes)), count)
    own_columns = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    table = rows @ columns.T
    np.subtract(1, table, out=table)
    table[own_rows, own_columns] = 1
    refuse_coincident(table, row_classes, column_classes, epsilon)
    if epsilon:
        np.maximum(table, 0, out=table)
        table += table.dtype.type(epsilon)
    np.log(table, out=table)
    table[own_rows, own_columns] = 0
    return table


def refuse_coincident(distances, row_classes, column_classes, epsilon) -> None:
    """Raise CoincidentError where ε is 0 and a distance (R, N) is nothing but rounding.

    `column_classes` None: each row's own real centroid is its one column.
    """
    if epsilon or not distances.size or distances.min() >= COINCIDENT:
        return
    row, column = np.unravel_index(int(np.argmin(distances)), distances.shape)
    raise CoincidentError(
        int(row_classes[row]), None if column_classes is None else int(column_classes[column])
    )


class CoincidentError(ValueError):
    """ε is 0 and a centroid of class `own` equals one of class `other`, or, where that is None, its real
    centroid.
    """

    def __init__(self, own: int, other: int | None):
        super().__init__(own, other)
        self.own, self.other = own, other

    def __str__(self) -> str:
        return self.explain(str)

    def explain(self, name_of) -> str:
        """One line, with the class ids as `name_of` gives them."""
        other = "its real centroid" if self.other is None else f"one of class {name_of(self.other)}"
        return (
            f"epsilon must be above 0 where centroids coincide: one of class {name_of(self.own)} equals {other}; "
            "set epsilon to 1e-6, or remove the duplicate images"
        )


def subgroup_centroids(features, subgroups, *, label: str = "candidates") -> tuple[np.ndarray, np.ndarray]:
    """Subgroup ids (G,), ascending, and the centroid (G, D) of each, of a class's `features` (N, D) float32.

    A centroid is the unit-length mean of unit-length features (N, D) whose subgroup (N,) is the same. `label`
    names the features in errors. Raises ValueError for no rows, NaN, zero features, and features that cancel
    out.
    """
    unit, subgroups = unit_rows(features, label), np.asarray(subgroups)
    if subgroups.shape != (len(unit),):
        raise ValueError(
            f"{label}: subgroups must be one number per feature ({len(unit)}), not {subgroups.shape}"
        )
    order = np.argsort(subgroups, kind="stable")
    ids, first = np.unique(subgroups[order], return_index=True)
    sums = np.add.reduceat(unit[order], first, axis=0)
    return ids, unit_rows(sums, f"{label}: the means of the subgroups").astype(np.float32)


def real_centroid(features, *, label: str = "real images") -> np.ndarray:
    """The unit-length mean (D,) float32 of a class's `features` (N, D), each brought to unit length. See
    above.
    """
    return subgroup_centroids(features, np.zeros(len(features), int), label=label)[1][0]


def unit_rows(features, label) -> np.ndarray:
    """`features` (N, D) in double precision, each of unit length."""
    features = np.asarray(features, dtype=np.float64)
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
