"""The candidates of a range of classes, scored against the centroids that are chosen so far in all classes.

Products and logarithms are float32, sums double. A tile of classes and a block of columns have the same
shapes for any number of shards, so that a score has the same bits wherever it is computed.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .objective import BLOCK, Objective, log_distances, refuse_coincident


@dataclass(frozen=True)
class Moves:
    """Changes of choice, one a class: who moves where, what it gains alone, and the centroid it moves to."""

    classes: np.ndarray  # (M,) int64
    choice: np.ndarray  # (M,) int64; (M, K) where images are chosen
    gains: np.ndarray  # (M,) decrease of L, float32 products
    own: np.ndarray  # (M,) change of the terms of L that hold this class alone, double
    centroids: np.ndarray  # (M, D) float32

    def take(self, rows) -> "Moves":
        return Moves(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class History:
    """How the choice of a round came about: a full choice, and the moves accepted since, in order."""

    choice: np.ndarray  # (C,) int64; (C, K) where images are chosen
    centroids: np.ndarray  # (C, D) float32
    moves: tuple[Moves, ...] = ()

    def end(self) -> tuple[np.ndarray, np.ndarray]:
        """Choice and centroids after all moves."""
        choice, centroids = self.choice.copy(), self.centroids.copy()
        for moves in self.moves:
            choice[moves.classes], centroids[moves.classes] = moves.choice, moves.centroids
        return choice, centroids

    def begins_with(self, earlier: "History") -> bool:
        """Whether this history continues `earlier`."""
        return (
            len(earlier.moves) <= len(self.moves)
            and np.array_equal(earlier.choice, self.choice)
            and all(
                np.array_equal(a.classes, b.classes) and np.array_equal(a.choice, b.choice)
                for a, b in zip(earlier.moves, self.moves, strict=False)
            )
        )


def tile_classes(num_classes: int) -> int:
    """Classes a tile: enough to fill a matrix product, few enough that small problems can be split."""
    return min(16, max(1, num_classes // 64))


def split_classes(num_classes: int, num_shards: int) -> list[range]:
    """Even, contiguous ranges of whole tiles, one a shard; fewer than `num_shards` where there are fewer
    tiles.
    """
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, not {num_shards}")
    tile = tile_classes(num_classes)
    num_tiles = -(-num_classes // tile)
    num_shards = min(num_shards, num_tiles)
    ends = [min(num_classes, tile * (num_tiles * k // num_shards)) for k in range(num_shards + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


class Shard:
    """Candidates of the classes first_class ... first_class + n - 1 of `num_classes`.

    `candidates` holds n arrays (G_i, D) float32 of unit length, `real` (n, D). Answers depend on the
    arguments of a call alone: a shard that has just been rebuilt, or that is asked the same again, gives the
    same bits.
    """

    def __init__(self, first_class: int, candidates, real, objective: Objective, num_classes: int):
        assert first_class % tile_classes(num_classes) == 0, "a shard begins with a tile: see split_classes"
        self._first, self._num_classes, self._objective = first_class, num_classes, objective
        self._candidates = candidates
        self._sizes = np.array([len(c) for c in candidates])
        check_candidates(candidates, real, first_class)
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)])
        # (R,) of each candidate
        self._classes = first_class + np.repeat(np.arange(len(candidates)), self._sizes)
        self._attractions = self._measure_attractions(np.asarray(real))
        self._followed = None  # the History that the table stands for
        self._separations = self._centroids = self._choice = None

    def sizes(self) -> np.ndarray:
        """Number of candidates (n,) of each class."""
        return self._sizes

    def attractions(self) -> np.ndarray:
        """log(d(c, r) + ε) of every candidate (R,), class by class, in double precision."""
        return self._attractions

    def centroids(self, choice) -> np.ndarray:
        """The centroids (n, D) that `choice` (C,) selects in this shard's classes."""
        own = choice[self._first : self._first + len(self._candidates)]
        return np.stack([c[g] for c, g in zip(self._candidates, own, strict=True)])

    def candidates(self, start: int, stop: int) -> np.ndarray:
        """The candidates (r, D) of those of the classes start ... stop - 1 that are this shard's: see
        fetch_pools.
        """
        own = self._candidates[max(start - self._first, 0) : max(stop - self._first, 0)]
        return np.concatenate(own) if own else self._candidates[0][:0]

    def pool_separations(self, start: int, pools) -> np.ndarray:
        """Σ_j mean_h log(d(c, c_{j,h}) + ε) of every candidate (R,) against the `pools` of classes start,
        start+1, …
        """
        sizes = np.array([len(pool) for pool in pools])
        columns, ids = np.concatenate(pools), start + np.repeat(np.arange(len(pools)), sizes)
        means = np.repeat(1 / sizes, sizes)
        sums = [
            log_distances(rows, columns, classes, ids, self._objective.epsilon).astype(np.float64) @ means
            for rows, classes, _ in self._tiles()
        ]
        return np.concatenate(sums)

    def propose(self, history: History, tolerance: float) -> Moves:
        """The best move of each class that gains more than `tolerance`, at the end of `history`."""
        self._follow(history)
        weight = self._objective.pair_weight(self._num_classes)
        scores = self._objective.alpha * self._attractions - weight * self._separations
        current = self._offsets[:-1] + self._choice
        best = first_minimum(scores, self._offsets, slack=tolerance / 2)
        gains = scores[current] - scores[best]
        moving = np.flatnonzero(gains > tolerance)
        best, current = best[moving], current[moving]
        choice = best - self._offsets[moving]
        rows = [self._candidates[i][g] for i, g in zip(moving, choice, strict=True)]
        return Moves(
            classes=self._first + moving,
            choice=choice,
            gains=gains[moving],
            own=self._objective.alpha * (self._attractions[best] - self._attractions[current]),
            centroids=np.stack(rows) if rows else np.empty((0, self._centroids.shape[1]), np.float32),
        )

    def _measure_attractions(self, real) -> np.ndarray:
        logs = []
        for rows, classes, _ in self._tiles():
            distances = 1 - np.einsum("rd,rd->r", rows.astype(np.float64), real[classes - self._first])
            refuse_coincident(distances[:, None], classes, None, self._objective.epsilon)
            logs.append(np.log(np.maximum(distances, 0) + self._objective.epsilon))
        return np.concatenate(logs)

    def _tiles(self):
        """Yield the candidates (r, D) of each tile of classes, their classes (r,), and their slice of R."""
        tile = tile_classes(self._num_classes)
        for start in range(0, len(self._candidates), tile):
            where = slice(*self._offsets[[start, min(start + tile, len(self._candidates))]])
            yield np.concatenate(self._candidates[start : start + tile]), self._classes[where], where

    def _follow(self, history: History) -> None:
        """Bring the table to the end of `history`: by the moves since the one seen, or from the start of
        another.
        """
        seen = self._followed
        if seen is None or not history.begins_with(seen):
            self._centroids, self._choice = history.centroids.copy(), self._own(history.choice).copy()
            self._separations = self._sums(self._centroids, np.arange(self._num_classes))
            seen = History(history.choice, history.centroids)
        for moves in history.moves[len(seen.moves) :]:
            moves = moves.take(np.argsort(moves.classes))
            ids = moves.classes
            self._separations += self._sums(moves.centroids, ids) - self._sums(self._centroids[ids], ids)
            self._centroids[ids] = moves.centroids
            mine = (ids >= self._first) & (ids < self._first + len(self._candidates))
            self._choice[ids[mine] - self._first] = moves.choice[mine]
        self._followed = history

    def _own(self, values):
        return values[self._first : self._first + len(self._candidates)]

    def _sums(self, columns, ids) -> np.ndarray:
        """Σ_j log(d + ε) of every candidate (R,) to `columns` (N, D) of the classes `ids` (N,), its own left
        out.
        """
        sums = np.zeros(self._offsets[-1])
        for rows, classes, where in self._tiles():
            for start in range(0, len(columns), BLOCK):
                block = slice(start, start + BLOCK)
                logs = log_distances(rows, columns[block], classes, ids[block], self._objective.epsilon)
                sums[where] += logs.sum(axis=1, dtype=np.float64)
        return sums


def fetch_pools(call, start: int, stop: int, sizes) -> list[np.ndarray]:
    """The candidates (G_i, D) of each of the classes start ... stop - 1; `sizes` (C,) are G_i. `call`: see
    solve.

    They travel as one array a shard: a thousand small ones take longer to pack than to send.
    """
    return np.split(np.concatenate(call("candidates", start, stop)), np.cumsum(sizes[start:stop])[:-1])


def first_minimum(values, offsets, slack: float) -> np.ndarray:
    """Position (n,) of the first of the values offsets[i] ... offsets[i+1] - 1 within `slack` of their least,
    for each i.

    Equal candidates get values that differ by rounding: the first of them is taken.
    """
    least = np.repeat(np.minimum.reduceat(values, offsets[:-1]), np.diff(offsets))
    hits = np.flatnonzero(values <= least + slack)
    return hits[np.searchsorted(hits, offsets[:-1])]


def check_counts(candidates, real) -> None:
    """Raise ValueError unless every class with candidates has its real centroid."""
    if not len(candidates) or len(real) != len(candidates):
        raise ValueError(
            f"real must hold one centroid per class with candidates ({len(candidates)}), not {len(real)}"
        )


def check_candidates(candidates, real, first_class: int = 0) -> None:
    """Raise ValueError, naming the class, unless candidates and real centroids are unit-length rows of one
    width.
    """
    check_counts(candidates, real)
    width = np.shape(real)[1] if np.ndim(real) == 2 else None
    for i, pool in enumerate(candidates, first_class):
        if np.ndim(pool) != 2 or len(pool) == 0:
            raise ValueError(
                f"class {i} needs at least one candidate centroid, as (G, D), not {np.shape(pool)}"
            )
        if pool.shape[1] != width:
            raise ValueError(
                f"class {i}: candidate centroids have {pool.shape[1]} values, the real ones {width}"
            )
    for name, row_sets in (("candidate", candidates), ("real", [real])):
        for i, rows in enumerate(row_sets, first_class):
            wrong = ~(np.abs(np.einsum("rd,rd->r", rows, rows) - 1) < 1e-3)  # NaN is wrong too
            if wrong.any():
                k = int(np.argmax(wrong))
                owner = i if name == "candidate" else first_class + k
                raise ValueError(
                    f"class {owner}: {name} centroid {k} must be finite and of unit length; normalise it"
                )
