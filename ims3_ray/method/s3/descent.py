"""The published solver, made cheap: visit the classes in turn, take each one's best, until none moves.

The published loop evaluates all of L for every trial. Here every candidate's sum of logarithms is kept: a
trial is a look-up, a move touches the candidates of its own tile of classes at once, and those of all
classes, together with the tile's other moves, as one matrix product. The walk is the published one, move by
move. R are the candidates of all classes, Σ G_i.
"""

import numpy as np
from jaxtyping import Float, Float64, Int

from .objective import Choice, Objective, Pools, log_distances
from .shard import PerCandidate, offsets_of

MOST_PAIRED = 2000  # candidates up to which two classes may move together: a table has their square
TILE = 64  # classes whose moves reach the other classes together
MOST_SWEEPS = 1000  # single precision can't send it in circles beyond these


def walk(
    candidates: Pools, attractions: PerCandidate, choice: Choice, objective: Objective
) -> tuple[Choice, int]:
    """Where the walk from `choice` ends, and its number of sweeps, the last one without a move included.

    `attractions` are log(d(c, r) + ε) of all candidates.
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
    while moved and sweeps < MOST_SWEEPS:
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
    """Visit n classes in turn: changes `choice` and `scores` in place, gives which classes moved.

    `rows` are their candidates, `starts` where each class's begin.
    """
    ends = np.append(starts[1:], len(rows))
    labels = np.repeat(np.arange(len(starts)), ends - starts)
    moved: list[int] = []
    following = 0
    while True:
        gains = scores[starts + choice] - np.minimum.reduceat(scores, starts)
        wanting = following + np.flatnonzero(gains[following:] > tolerance)
        if not len(wanting):
            return np.array(moved, dtype=np.int64)
        i = int(wanting[0])
        old, best = choice[i], int(scores[starts[i] : ends[i]].argmin())
        both = log_distances(rows[starts[i] + np.array([old, best])], rows, np.array([i, i]), labels, epsilon)
        scores -= weight * (both[1] - both[0])
        choice[i], following = best, i + 1
        moved.append(i)


def walk_pairs(
    candidates: Pools, attractions: PerCandidate, choice: Choice, objective: Objective
) -> tuple[Choice, int]:
    """As `walk`, then on by joint moves of two classes up to MOST_PAIRED: ends where neither kind gains."""
    choice, sweeps = walk(candidates, attractions, choice, objective)
    if len(attractions) > MOST_PAIRED or len(candidates) < 2:
        return choice, sweeps
    rows, sizes = np.concatenate(candidates).astype(np.float64), np.array([len(pool) for pool in candidates])
    first, classes = offsets_of(sizes)[:-1], np.repeat(np.arange(len(sizes)), sizes)
    logs = log_distances(rows, rows, classes, classes, objective.epsilon)
    tolerance = objective.tolerance(len(sizes))
    while sweeps < MOST_SWEEPS:
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
    """The two candidates of different classes that lower L most when both are chosen, and by how much.

    `logs` are log(d + ε), 0 within a class; `current` the chosen candidates, as rows.
    """
    weight = objective.pair_weight(len(current))
    costs = objective.alpha * attractions - weight * logs[:, current].sum(axis=1)
    of_class = current[classes]  # the chosen one of each candidate's class
    gains = costs[of_class] - costs
    across = logs[:, of_class]
    joint = logs - across - across.T + logs[of_class[:, None], of_class]
    joint = gains[:, None] + gains + weight * joint
    joint[classes[:, None] == classes] = -np.inf
    g, h = np.unravel_index(int(joint.argmax()), joint.shape)
    return int(g), int(h), float(joint[g, h])
