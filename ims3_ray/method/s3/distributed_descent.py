"""Minimise L in rounds: each class proposes its best move, and the driver accepts moves that lower L exactly.

The descent ends when no class has a move that pays. Notation: see `objective` and `shard`.
"""

from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from .descent import walk_pairs
from .objective import (
    Centroids,
    Choice,
    Objective,
    Pools,
    Selection,
    Terms,
    check_coincident,
    log_distances,
    pair_separation,
    pick,
)
from .shard import History, Moves, PerCandidate, Shard, first_minimum, offsets_of

MAX_TABLE_VALUES = 25_000_000  # pairs of a candidate and a class: a table of 100 MB
ACCEPT_BLOCK = 256  # moves whose interactions are computed together
# Share of the classes that may move per round, largest gains first; moving all ends in worse optima.
MAX_MOVED_SHARE = 0.25


class Shards(Protocol):
    """The candidates of all classes, in one `Shard` or in Ray actors.

    A result depends on the arguments only, so a call is safe to repeat.
    """

    def sizes(self) -> Int[np.ndarray, " C"]:
        """Return G_i, the number of candidates of each class."""
        ...

    def attractions(self) -> PerCandidate:
        """Return log(d(c, r) + ε) of every candidate."""
        ...

    def real(self) -> Float32[np.ndarray, "C D"]:
        """Return r_i, the real centroid of each class."""
        ...

    def centroids(self, choice: Choice) -> Float32[np.ndarray, "C D"]:
        """Return the centroids that `choice` selects."""
        ...

    def candidates(self) -> Float32[np.ndarray, "R D"]:
        """Return all candidates as one array, which is fast to send."""
        ...

    def propose(self, history: History, tolerance: float) -> Moves:
        """Return each class's best move at the end of `history`, if it gains more than `tolerance`."""
        ...

    def series_bounds(self, choice: Choice, chosen: Float32[np.ndarray, "C D"]) -> Float64[np.ndarray, "C O"]:
        """Return each class's part of the series bound at `choice`, per order: see `bound`."""
        ...


class Proposer(Protocol):
    """Anything that moves in rounds: shards of subgroups or of single images."""

    def propose(self, history: History, tolerance: float) -> Moves: ...


def select_centroids(
    candidates: Pools, real: np.ndarray, objective: Objective, *, restarts: int = 0, seed: int = 0
) -> Selection:
    """Choose one of `candidates[i]` (G_i, D) per class against `real` (C, D); rows have unit length."""
    shard = Shard(0, candidates, real, objective, len(candidates))
    return solve(shard, objective, restarts=restarts, seed=seed)


def solve(shards: Shards, objective: Objective, *, restarts: int = 0, seed: int = 0) -> Selection:
    """Return the best selection from the closest-to-real start and `restarts` random starts.

    Problems of up to MAX_TABLE_VALUES are walked in this process, since rounds would cost more in messages.
    Raises CoincidentError if ε is 0 and two centroids of the best selection coincide.
    """
    sizes, attractions = shards.sizes(), shards.attractions()
    offsets = offsets_of(sizes)
    weight = objective.pair_weight(len(sizes))
    closest = first_minimum(attractions, offsets, slack=1e-9) - offsets[:-1]
    is_small = len(sizes) * sizes.sum() <= MAX_TABLE_VALUES
    pools = fetch_pools(shards, sizes) if is_small else None

    def centroids_of(choice: Choice) -> Centroids:
        return shards.centroids(choice) if pools is None else pick(pools, choice)

    def terms_of(choice: Choice, centroids: Centroids) -> tuple[Terms, tuple[int, int] | None]:
        attraction = float(attractions[offsets[:-1] + choice].sum())
        separation, coincident = pair_separation(centroids, objective.epsilon)
        return Terms(attraction, separation, objective.alpha * attraction - weight * separation), coincident

    closest_centroids = centroids_of(closest)
    start_total = terms_of(closest, closest_centroids)[0].total
    best: Selection | None = None
    best_coincident: tuple[int, int] | None = None
    for start in range(restarts + 1):
        choice = np.random.default_rng((seed, start)).integers(sizes) if start else closest
        if pools is None:
            centroids = centroids_of(choice) if start else closest_centroids
            choice, centroids, rounds = descend(shards, choice, centroids, objective)
        else:
            choice, rounds = walk_pairs(pools, attractions, choice, objective)
            centroids = centroids_of(choice)
        terms, coincident = terms_of(choice, centroids)
        if best is None or terms.total < best.objective:
            solver, best_coincident = "rounds" if pools is None else "walk", coincident
            best = Selection(choice, terms, start_total, solver, rounds)
    assert best is not None, restarts
    check_coincident(best_coincident, objective)
    return best


def fetch_pools(shards: Shards, sizes: Int[np.ndarray, " C"]) -> list[Float32[np.ndarray, "_ _"]]:
    """Return the candidates (G_i, D) of each class; `sizes` are G_i."""
    return np.split(shards.candidates(), np.cumsum(sizes)[:-1])


def descend(
    shards: Proposer,
    choice: Int[np.ndarray, "C ..."],
    centroids: Float32[np.ndarray, "C D"],
    objective: Objective,
) -> tuple[Int[np.ndarray, "C ..."], Float32[np.ndarray, "C D"], int]:
    """Follow accepted moves from `choice` until no single change gains more than the tolerance.

    Returns the choice, its centroids, and the number of rounds that moved a class.
    """
    choice, centroids = choice.astype(np.int64), centroids.copy()
    history, rounds = History(choice.copy(), centroids.copy()), 0
    tolerance = objective.tolerance(len(choice))
    while True:
        moves = accept(shards.propose(history, tolerance), centroids, objective, tolerance)
        if not len(moves.classes):
            return choice, centroids, rounds
        choice[moves.classes], centroids[moves.classes] = moves.choice, moves.centroids
        rounds += 1
        history = History(history.choice, history.centroids, (*history.moves, moves))


def accept(
    moves: Moves, centroids: Float[np.ndarray, "C D"], objective: Objective, tolerance: float
) -> Moves:
    """Return the `moves` that each lower L by more than `tolerance` after the ones accepted before.

    Moves are tried by gain, ties by class, up to MAX_MOVED_SHARE of the classes. Changes of L are in double
    precision and include all pairs of moving classes, so the accepted moves lower L by their sum. `centroids`
    are those before any move.
    """
    weight, epsilon = objective.pair_weight(len(centroids)), objective.epsilon
    moves = moves.take(np.lexsort((moves.classes, -moves.gains)))
    all_ids, current = np.arange(len(centroids)), centroids.astype(np.float64)
    accepted: list[int] = []
    max_accepted = max(1, int(MAX_MOVED_SHARE * len(centroids)))
    for start in range(0, len(moves.classes), ACCEPT_BLOCK):
        block = moves.take(slice(start, start + ACCEPT_BLOCK))
        ids, new = block.classes, block.centroids.astype(np.float64)
        new_all = log_distances(new, current, ids, all_ids, epsilon)
        old_all = log_distances(current[ids], current, ids, all_ids, epsilon)
        order = np.argsort(ids)
        new_new = np.empty((len(ids), len(ids)))
        new_new[:, order] = log_distances(new, new[order], ids, ids[order], epsilon)
        changes = block.own - weight * (new_all.sum(axis=1) - old_all.sum(axis=1))
        mutual = -weight * (new_new - new_all[:, ids] - new_all[:, ids].T + old_all[:, ids])
        taken: list[int] = []
        for k in range(len(ids)):
            if changes[k] < -tolerance and len(accepted) + len(taken) < max_accepted:
                taken.append(k)
                changes += mutual[k]
        current[ids[taken]] = new[taken]
        accepted.extend(start + k for k in taken)
        if len(accepted) == max_accepted:
            break
    return moves.take(np.array(accepted, dtype=np.int64))
