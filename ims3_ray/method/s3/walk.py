"""The published solver, made cheap: visit the classes in turn, take each one's best subgroup, until none
moves.

The published loop evaluates all of L for every trial. Here every candidate's sum of logarithms is kept: a
trial is a look-up, a move touches the candidates of its own tile of classes at once, and those of all
classes, together with the tile's other moves, as one matrix product. The walk is the published one, move by
move: see selection_rounds.solve.
"""

import numpy as np

from .objective import Objective, log_distances

MOST_PAIRED = 2000  # candidates up to which two classes may move together: a table has their square
TILE = 64  # classes whose moves reach the other classes together
MOST_SWEEPS = 1000  # single precision can't send it in circles beyond these


def walk(candidates, attractions, choice, objective: Objective) -> tuple[np.ndarray, int]:
    """The choice (C,) where the walk from `choice` ends, and its number of sweeps, the last one without a
    move included.

    `candidates` is a list of (G_i, D), `attractions` (R,) are log(d(c, r) + ε) of all of them: see Shard.
    """
    rows, sizes = np.concatenate(candidates), np.array([len(pool) for pool in candidates])
    offsets, classes = np.concatenate([[0], np.cumsum(sizes)]), np.repeat(np.arange(len(sizes)), sizes)
    choice, weight = np.array(choice, dtype=np.int64), objective.pair_weight(len(sizes))
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


def _visit(rows, scores, starts, choice, weight: float, tolerance: float, epsilon: float) -> np.ndarray:
    """Visit n classes in turn: changes `choice` (n,) and `scores` (r,) in place, gives which classes moved.

    `rows` (r, D) are their candidates, `starts` (n,) where each class's begin.
    """
    ends = np.append(starts[1:], len(rows))
    labels = np.repeat(np.arange(len(starts)), ends - starts)
    moved, following = [], 0
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


def walk_pairs(candidates, attractions, choice, objective: Objective) -> tuple[np.ndarray, int]:
    """As `walk`, and then on by joint moves of two classes where MOST_PAIRED allows: ends where neither kind
    gains.
    """
    choice, sweeps = walk(candidates, attractions, choice, objective)
    if len(attractions) > MOST_PAIRED or len(candidates) < 2:
        return choice, sweeps
    rows, sizes = np.concatenate(candidates).astype(np.float64), np.array([len(pool) for pool in candidates])
    first, classes = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)
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


def best_pair(logs, attractions, current, classes, objective: Objective) -> tuple[int, int, float]:
    """The two candidates of different classes that lower L most when both are chosen at once, and by how
    much.

    `logs` (R, R) are log(d + ε), 0 within a class; `current` (C,) the chosen candidates, as rows.
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
