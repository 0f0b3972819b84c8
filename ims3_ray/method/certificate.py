"""Lower bounds of the selection objective: how far any choice can be from the best one.

L is the energy of a complete pairwise graph over the classes,
    L(g) = Σ_i θ_i(g_i) + Σ_{i<j} θ_ij(g_i, g_j),
    θ_i(g) = α log(d(c_{i,g}, r_i) + ε),  θ_ij(g, h) = -w log(d(c_{i,g}, c_{j,h}) + ε).

- *half pair*: every class takes the better half of each of its pairs, L ≥ Σ_i min_g [θ_i(g) + ½ Σ_j min_h θ_ij(g, h)].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .selection import Objective, Selection, log_distances

GROUP = 256  # classes a group: what one task compares with another group


@dataclass(frozen=True)
class Group:
    """The candidates of the classes first_class, first_class + 1, …, and their attractions (R,): see Shard."""

    first_class: int
    candidates: list[np.ndarray]
    attractions: np.ndarray

    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates (R, D), the class (R,) of each, and where each class begins."""
        sizes = np.array([len(pool) for pool in self.candidates])
        classes = self.first_class + np.repeat(np.arange(len(sizes)), sizes)
        return np.concatenate(self.candidates), classes, np.cumsum(sizes) - sizes


def split_groups(num_classes: int) -> list[range]:
    """The classes of each group, the same for any number of workers."""
    return [range(start, min(start + GROUP, num_classes)) for start in range(0, num_classes, GROUP)]


def make_groups(candidates, attractions) -> list[Group]:
    """Groups of `candidates`, a list of (G_i, D) by class, with `attractions` (R,) as the shards give them."""
    offsets = np.concatenate([[0], np.cumsum([len(pool) for pool in candidates])])
    return [
        Group(ids.start, list(candidates[ids.start : ids.stop]), attractions[offsets[ids.start] : offsets[ids.stop]])
        for ids in split_groups(len(candidates))
    ]


def run_here(function: Callable, arguments: list[tuple]) -> list:
    """Results of `function` on each tuple of `arguments`, in order: the plain form of a cluster's tasks."""
    return [function(*values) for values in arguments]


def certify(selection: Selection, groups: list, objective: Objective, *, run: Callable = run_here) -> Selection:
    """`selection` with a lower bound. `groups` are Groups, or handles of them that `run` resolves."""
    if selection.lower_bound is not None:
        return selection
    pairs = [(a, b) for a in range(len(groups)) for b in range(a, len(groups))]
    weight = objective.pair_weight(len(selection.choice))
    parts = run(half_pair_shares, [(groups[a], groups[b], objective.epsilon) for a, b in pairs])
    shares = [0.0] * len(groups)
    for (a, b), (share_a, share_b) in zip(pairs, parts, strict=True):
        shares[a] = shares[a] + share_a
        if a != b:
            shares[b] = shares[b] + share_b
    minima = run(half_pair_minimum, [(g, s, objective.alpha, weight) for g, s in zip(groups, shares, strict=True)])
    return replace(selection, lower_bound=min(float(sum(minima)), selection.objective), certificate="half pair")


def half_pair_shares(a: Group, b: Group, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """½ Σ_j max_h log(d + ε) of every candidate of one group over the classes j of the other, both ways."""
    (rows, row_classes, row_starts), (columns, column_classes, column_starts) = a.flat(), b.flat()
    logs = log_distances(rows, columns, row_classes, column_classes, epsilon)
    share_a = np.maximum.reduceat(logs, column_starts, axis=1).sum(axis=1, dtype=np.float64)
    share_b = np.maximum.reduceat(logs, row_starts, axis=0).sum(axis=0, dtype=np.float64)
    return 0.5 * share_a, 0.5 * share_b


def half_pair_minimum(group: Group, shares, alpha: float, weight: float) -> float:
    """The group's part of the half-pair bound."""
    return float(np.minimum.reduceat(alpha * group.attractions - weight * shares, group.flat()[2]).sum())
