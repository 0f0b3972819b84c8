"""Proven minima of the selection objective, for few classes."""

import numpy as np

from .selection import Objective, Terms, evaluate, log_distances


def pair_tables(candidates, real, objective: Objective) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """θ_i(g) (R,), θ_ij(g, h) (R, R) in double precision, 0 within a class, and where each class begins (C + 1,).

    Where partners are pools, their mean is part of θ_i and θ_ij is 0.
    """
    sizes = np.array([len(pool) for pool in candidates])
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate(candidates).astype(np.float64)
    distances = 1 - np.einsum("rd,rd->r", rows, np.asarray(real, np.float64)[classes])
    unary = objective.alpha * np.log(np.maximum(distances, 0) + objective.epsilon)
    pairs = -objective.pair_weight(len(sizes)) * log_distances(rows, rows, classes, classes, objective.epsilon)
    if objective.partners == "pool":
        unary, pairs = unary + 0.5 * pairs @ np.repeat(1 / sizes, sizes), np.zeros_like(pairs)
    return unary, pairs, np.concatenate([[0], np.cumsum(sizes)])


def exhaustive(candidates, real, objective: Objective, *, limit: int = 20_000_000) -> tuple[np.ndarray, Terms]:
    """The best of all choices, the first in lexicographic order among equals, and its terms.

    Raises ValueError for more than `limit` choices.
    """
    number = np.prod([float(len(pool)) for pool in candidates])
    if number > limit:
        raise ValueError(f"exhaustive search allows {limit} choices, not {number:.3g}; use fewer classes or subgroups")
    unary, pairs, offsets = pair_tables(candidates, real, objective)
    totals = np.zeros(1)  # of every choice of the classes so far, the last class varying fastest
    for i in range(len(candidates)):
        columns = []
        for row in range(offsets[i], offsets[i + 1]):
            linked = np.zeros(1)
            for j in range(i):
                linked = np.add.outer(linked, pairs[row, offsets[j] : offsets[j + 1]]).ravel()
            columns.append(totals + linked + unary[row])
        totals = np.stack(columns, axis=1).ravel()
    choice = np.array(np.unravel_index(int(np.argmin(totals)), [len(pool) for pool in candidates]), dtype=np.int64)
    return choice, evaluate(choice, candidates, real, objective)
