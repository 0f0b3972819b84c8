"""Minimise L by rounds: every shard proposes, the driver accepts what improves L exactly, until nothing does.

The driver reaches its shards through `call(method, *arguments) -> list of results, one a shard, in the
shards' order`, so that shards may be objects of this process (`local_call`) or actors elsewhere. A repeated
call is harmless.
"""

import numpy as np

from .objective import Objective, Selection, Terms, log_distances, pair_separation
from .shard import History, Moves, Shard, check_counts, fetch_pools, first_minimum, split_classes
from .walk import walk_pairs

MOST_VALUES = 25_000_000  # a table of 100 MB
ACCEPT_BLOCK = 256  # moves whose interactions are computed together
# of the classes, a round: the others answer to those that gain most. All at once ends in worse optima
MOST_MOVED = 0.25
POOL_BLOCK = 256  # classes whose candidates travel together


def select(candidates, real, objective: Objective, *, restarts=0, seed=0, num_shards=1) -> Selection:
    """Choose one of `candidates[i]` (G_i, D) per class against the `real` centroids (C, D), all of unit
    length.
    """
    check_counts(candidates, real)
    shards = [
        Shard(
            ids[0], candidates[ids[0] : ids[-1] + 1], real[ids[0] : ids[-1] + 1], objective, len(candidates)
        )
        for ids in split_classes(len(candidates), num_shards)
    ]
    return solve(local_call(shards), objective, restarts=restarts, seed=seed)


def local_call(shards):
    """A `call` on shards of this process."""
    return lambda method, *arguments: [getattr(shard, method)(*arguments) for shard in shards]


def solve(call, objective: Objective, *, restarts: int = 0, seed: int = 0, walked: bool = True) -> Selection:
    """The best of the rounds from the closest-to-real choice and from `restarts` random ones.

    Up to MOST_VALUES pairs of a candidate and a class this process walks instead, unless `walked` forbids it:
    rounds would cost more in messages.
    """
    if restarts < 0:
        raise ValueError(f"restarts must be at least 0, not {restarts}")
    sizes = np.concatenate(call("sizes"))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    attractions = np.concatenate(call("attractions"))
    weight = objective.pair_weight(len(sizes))
    closest = first_minimum(attractions, offsets, slack=1e-9) - offsets[:-1]
    settings = {**vars(objective), "restarts": restarts, "seed": seed}
    if objective.partners == "pool":
        return _separable(call, objective, offsets, attractions, closest, settings)

    def terms_of(choice, centroids) -> Terms:
        attraction = float(attractions[offsets[:-1] + choice].sum())
        separation = pair_separation(centroids, objective.epsilon)
        return Terms(attraction, separation, objective.alpha * attraction - weight * separation)

    small = walked and len(sizes) * sizes.sum() <= MOST_VALUES
    pools = fetch_pools(call, 0, len(sizes), sizes) if small else None

    def centroids_of(choice) -> np.ndarray:
        if pools is None:
            return np.concatenate(call("centroids", choice))
        return np.stack([pool[g] for pool, g in zip(pools, choice, strict=True)])

    best, start_total = None, None
    for start in range(restarts + 1):
        choice = np.random.default_rng((seed, start)).integers(sizes) if start else closest
        centroids = centroids_of(choice)
        if start == 0:
            start_total = terms_of(choice, centroids).total
        if pools is None:
            choice, centroids, rounds = descend(call, choice, centroids, objective)
        else:
            choice, rounds = walk_pairs(pools, attractions, choice, objective)
            centroids = centroids_of(choice)
        terms = terms_of(choice, centroids)
        if best is None or terms.total < best[1].total:
            best = choice, terms, rounds, start
    choice, terms, rounds, start = best
    return Selection(
        choice, terms, start_total, None, "none", "walk" if small else "rounds", rounds, start, settings
    )


def descend(call, choice, centroids, objective: Objective) -> tuple[np.ndarray, np.ndarray, int]:
    """Follow accepted moves from `choice` (C,) with `centroids` (C, D) until no single change gains over the
    tolerance.

    Returns choice, centroids and the number of rounds that moved something.
    """
    choice, centroids = choice.astype(np.int64), centroids.astype(np.float32)
    history, rounds = History(choice.copy(), centroids.copy()), 0
    tolerance = objective.tolerance(len(choice))
    while True:
        proposals = call("propose", history, tolerance)
        moves = Moves(
            *(np.concatenate([getattr(p, name) for p in proposals]) for name in Moves.__dataclass_fields__)
        )
        moves = accept(moves, centroids, objective, tolerance)
        if not len(moves.classes):
            return choice, centroids, rounds
        choice[moves.classes], centroids[moves.classes] = moves.choice, moves.centroids
        rounds += 1
        history = History(history.choice, history.centroids, (*history.moves, moves))


def accept(moves: Moves, centroids, objective: Objective, tolerance: float) -> Moves:
    """Those of `moves` that lower L by more than `tolerance`, each given the ones accepted before it.

    By gain, ties by class, up to MOST_MOVED of the classes. Changes of L are in double precision and hold all
    pairs of moving classes: the accepted moves together lower L by their sum. `centroids` (C, D) are those
    chosen before.
    """
    weight, epsilon = objective.pair_weight(len(centroids)), objective.epsilon
    moves = moves.take(np.lexsort((moves.classes, -moves.gains)))
    all_ids, current = np.arange(len(centroids)), centroids.astype(np.float64)
    accepted, most = [], max(1, int(MOST_MOVED * len(centroids)))
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
        kept = []
        for k in range(len(ids)):
            if changes[k] < -tolerance and len(accepted) + len(kept) < most:
                kept.append(k)
                changes += mutual[k]
        current[ids[kept]] = new[kept]
        accepted.extend(start + k for k in kept)
        if len(accepted) == most:
            break
    return moves.take(np.array(accepted, dtype=np.int64))


def _separable(call, objective, offsets, attractions, closest, settings) -> Selection:
    """The exact answer where partners are pools: each class chooses alone."""
    num_classes = len(closest)
    separations = np.zeros(len(attractions))
    for start in range(0, num_classes, POOL_BLOCK):
        pools = fetch_pools(call, start, start + POOL_BLOCK, np.diff(offsets))
        separations += np.concatenate(call("pool_separations", start, pools))
    weight = 0.5 * objective.pair_weight(num_classes)
    scores = objective.alpha * attractions - weight * separations
    best = first_minimum(scores, offsets, slack=objective.tolerance(num_classes) / 2)
    terms = Terms(
        float(attractions[best].sum()), float(0.5 * separations[best].sum()), float(scores[best].sum())
    )
    start = float(scores[offsets[:-1] + closest].sum())
    return Selection(best - offsets[:-1], terms, start, terms.total, "exact", "separable", 1, 0, settings)
