"""The candidates of a range of classes, scored against the centroids that are chosen so far in all classes.

| here | meaning |
|---|---|
| C, n | classes in all, and of a shard |
| R | candidates of a shard, class by class: Σ G_i |
| M | classes that move at once |

Products and logarithms are float32, sums double. A tile of classes and a block of columns have the same
shapes for any number of shards, so that a score has the same bits wherever it is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from .objective import BLOCK, Centroids, Choice, Objective, Pools, log_distances, own_logs

PerCandidate = Float64[np.ndarray, " R"]
Offsets = Int[np.ndarray, " n_plus_1"]  # where the candidates of each class begin, and their end


@dataclass(frozen=True)
class Moves:
    """Changes of choice, one a class: who moves where, what it gains alone, and the centroid it moves to."""

    classes: Int[np.ndarray, " M"]
    choice: Int[np.ndarray, "M ..."]  # (M, K) where images are chosen
    gains: Float64[np.ndarray, " M"]  # decrease of L, float32 products
    own: Float64[np.ndarray, " M"]  # change of the terms of L that hold this class alone
    centroids: Float32[np.ndarray, "M D"]

    def take(self, rows: Int[np.ndarray, " _"] | slice) -> "Moves":
        return Moves(*(column[rows] for column in vars(self).values()))

    @staticmethod
    def join(parts: Sequence["Moves"]) -> "Moves":
        return Moves(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class History:
    """How the choice of a round came about: a full choice, and the moves accepted since, in order."""

    choice: Int[np.ndarray, "C ..."]  # (C, K) where images are chosen
    centroids: Float32[np.ndarray, "C D"]
    moves: tuple[Moves, ...] = ()

    def end(self) -> tuple[Int[np.ndarray, "C ..."], Centroids]:
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


@dataclass
class _Scores:
    """What a shard keeps between rounds: its candidates' scores at the end of `history`."""

    history: History
    centroids: Float32[np.ndarray, "C D"]
    choice: Int[np.ndarray, " n"]
    separations: PerCandidate


class Shard:
    """Candidates of the classes first_class ... first_class + n - 1 of `num_classes`: see rounds.Shards.

    `candidates` holds n arrays (G_i, D) float32 of unit length, `real` (n, D). A shard that has just been
    rebuilt gives the same bits.
    """

    def __init__(
        self, first_class: int, candidates: Pools, real: np.ndarray, objective: Objective, num_classes: int
    ):
        assert first_class % tile_classes(num_classes) == 0, "a shard begins with a tile: see split_classes"
        check_candidates(candidates, real, first_class)
        self._num_classes, self._objective, self._candidates = num_classes, objective, candidates
        self._ids = slice(first_class, first_class + len(candidates))
        self._sizes = np.array([len(pool) for pool in candidates])
        self._offsets = offsets_of(self._sizes)
        self._classes = first_class + np.repeat(np.arange(len(candidates)), self._sizes)  # (R,)
        self._attractions = self._measure_attractions(real)
        self._scores: _Scores | None = None

    def sizes(self) -> Int[np.ndarray, " n"]:
        return self._sizes

    def attractions(self) -> PerCandidate:
        return self._attractions

    def centroids(self, choice: Choice) -> Float32[np.ndarray, "n D"]:
        return pick(self._candidates, choice[self._ids])

    def candidates(self, start: int, stop: int) -> Float32[np.ndarray, "r D"]:
        first = self._ids.start
        own = self._candidates[max(start - first, 0) : max(stop - first, 0)]
        return np.concatenate(own) if len(own) else self._candidates[0][:0]

    def propose(self, history: History, tolerance: float) -> Moves:
        now = self._follow(history)
        weight = self._objective.pair_weight(self._num_classes)
        scores = self._objective.alpha * self._attractions - weight * now.separations
        current = self._offsets[:-1] + now.choice
        best = first_minimum(scores, self._offsets, slack=tolerance / 2)
        gains = scores[current] - scores[best]
        moving = np.flatnonzero(gains > tolerance)
        best, current = best[moving], current[moving]
        choice = best - self._offsets[moving]
        rows = [self._candidates[int(i)][g] for i, g in zip(moving, choice, strict=True)]
        return Moves(
            classes=self._ids.start + moving,
            choice=choice,
            gains=gains[moving],
            own=self._objective.alpha * (self._attractions[best] - self._attractions[current]),
            centroids=np.stack(rows) if rows else now.centroids[:0],
        )

    def _measure_attractions(self, real: np.ndarray) -> PerCandidate:
        logs: list[np.ndarray] = []
        for rows, classes, _ in self.tiles():
            own = real[classes - self._ids.start]
            distances = 1 - np.einsum("rd,rd->r", rows.astype(np.float64), own)
            logs.append(own_logs(distances, classes, self._objective.epsilon))
        return np.concatenate(logs)

    def tiles(self) -> Iterator[tuple[np.ndarray, np.ndarray, slice]]:
        """The candidates (r, D) of each tile of classes, their classes (r,), and their slice of R."""
        tile = tile_classes(self._num_classes)
        for start in range(0, len(self._candidates), tile):
            where = slice(*self._offsets[[start, min(start + tile, len(self._candidates))]])
            yield np.concatenate(self._candidates[start : start + tile]), self._classes[where], where

    def _follow(self, history: History) -> _Scores:
        """The scores at the end of `history`: by the moves since the last one, or from another's start."""
        now = self._scores
        if now is None or not history.begins_with(now.history):
            centroids = history.centroids.copy()
            now = _Scores(
                history=History(history.choice, history.centroids),
                centroids=centroids,
                choice=history.choice[self._ids].copy(),
                separations=self._sums(centroids, np.arange(self._num_classes)),
            )
        for moves in history.moves[len(now.history.moves) :]:
            moves = moves.take(np.argsort(moves.classes))
            ids = moves.classes
            now.separations += self._sums(moves.centroids, ids) - self._sums(now.centroids[ids], ids)
            now.centroids[ids] = moves.centroids
            mine = (ids >= self._ids.start) & (ids < self._ids.stop)
            now.choice[ids[mine] - self._ids.start] = moves.choice[mine]
        now.history, self._scores = history, now
        return now

    def _sums(self, columns: Float32[np.ndarray, "N D"], ids: Int[np.ndarray, " N"]) -> PerCandidate:
        """Σ_j log(d + ε) of every candidate to `columns` of the classes `ids`, its own left out."""
        sums = np.zeros(self._offsets[-1])
        for rows, classes, where in self.tiles():
            for start in range(0, len(columns), BLOCK):
                block = slice(start, start + BLOCK)
                logs = log_distances(rows, columns[block], classes, ids[block], self._objective.epsilon)
                sums[where] += logs.sum(axis=1, dtype=np.float64)
        return sums


def tile_classes(num_classes: int) -> int:
    """Classes a tile: enough to fill a matrix product, few enough that small problems can be split."""
    return min(16, max(1, num_classes // 64))


def split_classes(num_classes: int, num_shards: int) -> list[range]:
    """Even, contiguous ranges of whole tiles, one a shard; fewer than `num_shards` with fewer tiles."""
    tile = tile_classes(num_classes)
    num_tiles = -(-num_classes // tile)
    num_shards = min(num_shards, num_tiles)
    ends = [min(num_classes, tile * (num_tiles * k // num_shards)) for k in range(num_shards + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def offsets_of(sizes: Int[np.ndarray, " n"]) -> Offsets:
    """Where each class begins among all candidates, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)])


def pick(candidates: Pools, choice: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D"]:
    """The centroid that each class chooses."""
    return np.stack([pool[g] for pool, g in zip(candidates, choice, strict=True)])


def first_minimum(values: PerCandidate, offsets: Offsets, slack: float) -> Int[np.ndarray, " n"]:
    """Position of the first of values[offsets[i] : offsets[i + 1]] within `slack` of their least, for each i.

    Equal candidates get values that differ by rounding: the first of them is taken.
    """
    least = np.repeat(np.minimum.reduceat(values, offsets[:-1]), np.diff(offsets))
    hits = np.flatnonzero(values <= least + slack)
    return hits[np.searchsorted(hits, offsets[:-1])]


def check_candidates(candidates: Pools, real: np.ndarray, first_class: int = 0) -> None:
    """Raise ValueError, naming the class, unless all centroids are unit-length rows of one width."""
    if not len(candidates) or len(real) != len(candidates):
        raise ValueError(
            f"real must hold one centroid per class with candidates ({len(candidates)}), not {len(real)}"
        )
    width = real.shape[1] if real.ndim == 2 else None
    for i, pool in enumerate(candidates, first_class):
        if len(pool) == 0:
            raise ValueError(f"class {i} needs at least one candidate centroid, as (G, D), not {pool.shape}")
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
