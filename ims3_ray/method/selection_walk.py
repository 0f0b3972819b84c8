"""The published solver, with sums that are kept: visit the classes in turn, take each one's best subgroup, until none moves.

The published loop evaluates all of L for every trial. Here a trial costs a look-up and a move one row of a (C, R) table of
logarithms, so that the same walk takes a fraction of a second where the table fits: see selection_rounds.solve.
"""

import numpy as np

from .selection import Objective, log_distances


def walk(candidates, attractions, choice, objective: Objective) -> tuple[np.ndarray, int]:
    """The choice (C,) where the walk from `choice` ends, and its number of sweeps, the last one without a move included.

    `candidates` is a list of (G_i, D), `attractions` (R,) are log(d(c, r) + ε) of all of them: see Shard.
    """
    rows, sizes = np.concatenate(candidates), np.array([len(pool) for pool in candidates])
    offsets, classes = np.concatenate([[0], np.cumsum(sizes)]), np.repeat(np.arange(len(sizes)), sizes)
    choice, weight = np.array(choice, dtype=np.int64), objective.pair_weight(len(sizes))
    tolerance = objective.tolerance(len(sizes))
    table = log_distances(rows[offsets[:-1] + choice], rows, np.arange(len(sizes)), classes, objective.epsilon)
    sums = table.sum(axis=0, dtype=np.float64)  # Σ_j log(d(c, c_j) + ε) of every candidate
    sweeps, moved = 0, True
    while moved:
        sweeps, moved = sweeps + 1, False
        for i, start in enumerate(offsets[:-1]):
            own = slice(start, offsets[i + 1])
            costs = objective.alpha * attractions[own] - weight * sums[own]
            best = int(costs.argmin())
            if costs[best] < costs[choice[i]] - tolerance:
                logs = log_distances(rows[start + best][None], rows, np.array([i]), classes, objective.epsilon)[0]
                sums += logs.astype(np.float64) - table[i]
                choice[i], table[i], moved = best, logs, True
    return choice, sweeps
