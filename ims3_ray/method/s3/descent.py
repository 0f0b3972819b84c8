"""Minimise L in one process, as the published solver does: visit the classes in turn until none moves.

The published loop evaluates L for each trial. This one keeps the sum of logarithms of each candidate, so a
trial is a look-up. A move updates its own tile of classes at once. All moves of a tile update the other
classes in one matrix product. Both loops make the same moves. R is the number of candidates, Σ G_i.
"""

import numpy as np
from jaxtyping import Float, Float64, Int

from .objective import Choice, Objective, Pools, log_distances
from .shard import PerCandidate, offsets_of

MAX_PAIRED = 2000  # candidates up to which two classes may move together: a table has R² values
TILE = 64  # classes whose moves update the other classes in one product
MAX_SWEEPS = 1000  # ends a cycle caused by single precision


def walk(
    candidates: Pools, attractions: PerCandidate, choice: Choice, objective: Objective
) -> tuple[Choice, int]:
    """Return the final choice, and the number of sweeps including the last one, which moves nothing.

    `choice` is the start; `attractions` are log(d(c, r) + ε) of all candidates.
    """
    rows, sizes = np.concatenate(candidates), np.array([len(pool) for pool in candidates])
    offsets, classes = offsets_of(sizes), np.repeat(np.arange(len(sizes)), sizes)
    choice, weight = choice.astype(np.int64), objective.pair_weight(len(sizes))
    tolerance = objective.tolerance(len(sizes))
    table = log_distances(
        rows[offsets[:-1] + choice], rows, np.arange(len(sizes)), classes, objective.epsilon
    )
    sums = table.sum(axis=0, dtype=np.float64)  # Σ_j log(d(c, c_j) + ε) of every candidate
    tiles = [slice(start, min(start + TILE, len(sizes))) for start in range(0, len(sizes), TILE)]
    sweeps, moved = 0, True
    while moved and sweeps < MAX_SWEEPS:
        sweeps, moved = sweeps + 1, False
        for tile in tiles:
            own = slice(offsets[tile.start], offsets[tile.stop])
            scores = objective.alpha * attractions[own] - weight * sums[own]
            starts = offsets[tile] - own.start
            ids = tile.start + _visit(
                rows[own], scores, starts, choice[tile], weight, tolerance, objective.epsilon
            )
            if len(ids):
                logs = log_distances(rows[offsets[ids] + choice[ids]], rows, ids, classes, objective.epsilon)
                sums += (logs - table[ids]).sum(axis=0, dtype=np.float64)
                table[ids], moved = logs, True
    return choice, sweeps


def _visit(
    rows: Float[np.ndarray, "r D"],
    scores: Float64[np.ndarray, " r"],
    starts: Int[np.ndarray, " n"],
    choice: Int[np.ndarray, " n"],
    weight: float,
    tolerance: float,
    epsilon: float,
) -> Int[np.ndarray, " m"]:
    """Visit n classes in turn, update `choice` and `scores` in place, and return the classes that moved.

    `rows` are the candidates of these classes; `starts` has the first row of each class.
    """
    ends = np.append(starts[1:], len(rows))
    labels = np.repeat(np.arange(len(starts)), ends - starts)
    moved: list[int] = []
    next_class = 0
    while True:
        gains = scores[starts + choice] - np.minimum.reduceat(scores, starts)
        willing = next_class + np.flatnonzero(gains[next_class:] > tolerance)
        if not len(willing):
            return np.array(moved, dtype=np.int64)
        i = int(willing[0])
        old, best = choice[i], int(scores[starts[i] : ends[i]].argmin())
        both = log_distances(rows[starts[i] + np.array([old, best])], rows, np.array([i, i]), labels, epsilon)
        scores -= weight * (both[1] - both[0])
        choice[i], next_class = best, i + 1
        moved.append(i)


def walk_pairs(
    candidates: Pools, attractions: PerCandidate, choice: Choice, objective: Objective
) -> tuple[Choice, int]:
    """Walk, then also move two classes together, until neither kind of move gains.

    Above MAX_PAIRED candidates this is only the walk.
    """
    choice, sweeps = walk(candidates, attractions, choice, objective)
    if len(attractions) > MAX_PAIRED or len(candidates) < 2:
        return choice, sweeps
    rows, sizes = np.concatenate(candidates).astype(np.float64), np.array([len(pool) for pool in candidates])
    first, classes = offsets_of(sizes)[:-1], np.repeat(np.arange(len(sizes)), sizes)
    logs = log_distances(rows, rows, classes, classes, objective.epsilon)
    tolerance = objective.tolerance(len(sizes))
    while sweeps < MAX_SWEEPS:
        g, h, gain = best_pair(logs, attractions, first + choice, classes, objective)
        if gain <= tolerance:
            break
        for row in (g, h):
            choice[classes[row]] = row - first[classes[row]]
        choice, more = walk(candidates, attractions, choice, objective)
        sweeps += more
    return choice, sweeps


def best_pair(
    logs: Float64[np.ndarray, "R R"],
    attractions: PerCandidate,
    current: Choice,
    classes: Int[np.ndarray, " R"],
    objective: Objective,
) -> tuple[int, int, float]:
    """Return the two candidates of different classes that lower L most if both are chosen, and the gain.

    `logs` are log(d + ε), 0 within a class; `current` has the row of each class's chosen candidate.
    """
    weight = objective.pair_weight(len(current))
    costs = objective.alpha * attractions - weight * logs[:, current].sum(axis=1)
    of_class = current[classes]  # the chosen candidate of each candidate's class
    gains = costs[of_class] - costs
    across = logs[:, of_class]
    joint = logs - across - across.T + logs[of_class[:, None], of_class]
    joint = gains[:, None] + gains + weight * joint
    joint[classes[:, None] == classes] = -np.inf
    g, h = np.unravel_index(int(joint.argmax()), joint.shape)
    return int(g), int(h), float(joint[g, h])
