"""Minimise L by rounds: every class proposes its best move, the driver accepts what improves L exactly, until
nothing does. Notation: see objective and shard.
"""

from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int

from .descent import walk_pairs
from .objective import (
    Centroids,
    Choice,
    Objective,
    Pools,
    Selection,
    Terms,
    log_distances,
    pair_separation,
    refuse_coincident,
)
from .shard import (
    History,
    Moves,
    PerCandidate,
    Shard,
    check_candidates,
    first_minimum,
    offsets_of,
    pick,
    split_classes,
)

MOST_VALUES = 25_000_000  # pairs of a candidate and a class: a table of 100 MB
ACCEPT_BLOCK = 256  # moves whose interactions are computed together
# of the classes, a round: the others answer to those that gain most. All at once ends in worse optima
MOST_MOVED = 0.25
P = ParamSpec("P")
Answer = TypeVar("Answer")
Asked = TypeVar("Asked", covariant=True)


class Shards(Protocol):
    """What the rounds ask of the candidates: of one Shard with all classes, or of several Joined.

    Answers depend on the arguments of a call alone, so that any may be asked again.
    """

    def sizes(self) -> Int[np.ndarray, " n"]:
        """G_i, the number of candidates of each class."""
        ...

    def attractions(self) -> PerCandidate:
        """log(d(c, r) + ε) of every candidate."""
        ...

    def centroids(self, choice: Choice) -> Float32[np.ndarray, "n D"]:
        """What `choice` selects."""
        ...

    def candidates(self, start: int, stop: int) -> Float32[np.ndarray, "R D"]:
        """Those of the classes start ... stop - 1, as one array: many take longer to pack than to send."""
        ...

    def propose(self, history: History, tolerance: float) -> Moves:
        """The best move of each class that gains more than `tolerance`, at the end of `history`."""
        ...


class Ask(Protocol[Asked]):
    """Asks every shard the same; gives their answers in the order of their classes."""

    def __call__(
        self, method: Callable[Concatenate[Asked, P], Answer], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[Answer]: ...


def ask_here(shards: Sequence[Asked]) -> Ask[Asked]:
    """`ask` of shards in this process."""

    def ask(
        method: Callable[Concatenate[Asked, P], Answer], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[Answer]:
        return [method(shard, *args, **kwargs) for shard in shards]

    return ask


class Joined:
    """The shards that `ask` reaches, as one: see Shards."""

    def __init__(self, ask: Ask[Shard]):
        self.ask = ask

    def sizes(self) -> Int[np.ndarray, " C"]:
        return np.concatenate(self.ask(Shard.sizes))

    def attractions(self) -> PerCandidate:
        return np.concatenate(self.ask(Shard.attractions))

    def centroids(self, choice: Choice) -> Float32[np.ndarray, "C D"]:
        return np.concatenate(self.ask(Shard.centroids, choice))

    def candidates(self, start: int, stop: int) -> Float32[np.ndarray, "R D"]:
        return np.concatenate(self.ask(Shard.candidates, start, stop))

    def propose(self, history: History, tolerance: float) -> Moves:
        return Moves.join(self.ask(Shard.propose, history, tolerance))


class Proposing(Protocol):
    """What moves in rounds: subgroups or single images."""

    def propose(self, history: History, tolerance: float) -> Moves: ...


def select(
    candidates: Pools,
    real: np.ndarray,
    objective: Objective,
    *,
    restarts: int = 0,
    seed: int = 0,
    num_shards: int = 1,
) -> Selection:
    """Choose one of `candidates[i]` a class against the `real` centroids (C, D), all of unit length."""
    check_candidates(candidates, real)
    shards: list[Shard] = []
    for ids in split_classes(len(candidates), num_shards):
        own = slice(ids.start, ids.stop)
        shards.append(Shard(ids.start, candidates[own], real[own], objective, len(candidates)))
    return solve(Joined(ask_here(shards)), objective, restarts=restarts, seed=seed)


def solve(shards: Shards, objective: Objective, *, restarts: int = 0, seed: int = 0) -> Selection:
    """The best of the rounds from the closest-to-real choice and from `restarts` random ones.

    Up to MOST_VALUES this process walks instead: rounds would cost more in messages. Raises CoincidentError
    where ε is 0 and even in the best choice two centroids coincide.
    """
    sizes, attractions = shards.sizes(), shards.attractions()
    offsets = offsets_of(sizes)
    weight = objective.pair_weight(len(sizes))
    closest = first_minimum(attractions, offsets, slack=1e-9) - offsets[:-1]
    is_small = len(sizes) * sizes.sum() <= MOST_VALUES
    pools = fetch_pools(shards, 0, len(sizes), sizes) if is_small else None

    def centroids_of(choice: Choice) -> Centroids:
        return shards.centroids(choice) if pools is None else pick(pools, choice)

    def terms_of(choice: Choice, centroids: Centroids) -> tuple[Terms, tuple[int, int] | None]:
        attraction = float(attractions[offsets[:-1] + choice].sum())
        separation, coincident = pair_separation(centroids, objective.epsilon)
        return Terms(attraction, separation, objective.alpha * attraction - weight * separation), coincident

    closest_centroids = centroids_of(closest)
    start_total = terms_of(closest, closest_centroids)[0].total
    best: Selection | None = None
    coincident: tuple[int, int] | None = None
    for start in range(restarts + 1):
        choice = np.random.default_rng((seed, start)).integers(sizes) if start else closest
        if pools is None:
            choice, centroids, rounds = descend(
                shards, choice, centroids_of(choice) if start else closest_centroids, objective
            )
        else:
            choice, rounds = walk_pairs(pools, attractions, choice, objective)
            centroids = centroids_of(choice)
        terms, its_coincident = terms_of(choice, centroids)
        if best is None or terms.total < best.objective:
            coincident = its_coincident
            solver = "rounds" if pools is None else "walk"
            best = Selection(choice, terms, start_total, solver, rounds, start)
    assert best is not None, restarts
    refuse_coincident(coincident)
    return best


def fetch_pools(
    shards: Shards, start: int, stop: int, sizes: Int[np.ndarray, " C"]
) -> list[Float32[np.ndarray, "_ _"]]:
    """The candidates (G_i, D) of each of the classes start ... stop - 1; `sizes` are G_i."""
    return np.split(shards.candidates(start, stop), np.cumsum(sizes[start:stop])[:-1])


def descend(
    shards: Proposing,
    choice: Int[np.ndarray, "C ..."],
    centroids: Float32[np.ndarray, "C D"],
    objective: Objective,
) -> tuple[Int[np.ndarray, "C ..."], Float32[np.ndarray, "C D"], int]:
    """Follow accepted moves from `choice` with `centroids` until no single change gains over the tolerance.

    Returns choice, centroids and the number of rounds that moved something.
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
    """Those of `moves` that lower L by more than `tolerance`, each given the ones accepted before it.

    By gain, ties by class, up to MOST_MOVED of the classes. Changes of L are in double precision and hold all
    pairs of moving classes: the accepted moves together lower L by their sum. `centroids` are those before.
    """
    weight, epsilon = objective.pair_weight(len(centroids)), objective.epsilon
    moves = moves.take(np.lexsort((moves.classes, -moves.gains)))
    all_ids, current = np.arange(len(centroids)), centroids.astype(np.float64)
    accepted: list[int] = []
    most = max(1, int(MOST_MOVED * len(centroids)))
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
        kept: list[int] = []
        for k in range(len(ids)):
            if changes[k] < -tolerance and len(accepted) + len(kept) < most:
                kept.append(k)
                changes += mutual[k]
        current[ids[kept]] = new[kept]
        accepted.extend(start + k for k in kept)
        if len(accepted) == most:
            break
    return moves.take(np.array(accepted, dtype=np.int64))
