"""Score the candidates of a range of classes against the centroids chosen so far in all classes.

| here | meaning |
|---|---|
| C, n | number of classes in total and in a shard |
| R | candidates of a shard, class by class: Σ G_i |
| M | classes that move at once |

Products and logarithms are float32, sums float64. Tiles of classes and blocks of columns have the same shapes
for any number of shards, so a score has the same bits wherever it is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64, Int

from .objective import BLOCK, Centroids, Choice, Objective, Pools, log_distances, own_logs, pick

PerCandidate = Float64[np.ndarray, " R"]
Offsets = Int[np.ndarray, " n_plus_1"]  # first candidate of each class, and the end of the last


@dataclass(frozen=True)
class Moves:
    """Changes of the choice, one per class."""

    classes: Int[np.ndarray, " M"]
    choice: Int[np.ndarray, "M ..."]  # (M, K) if images are selected
    gains: Float64[np.ndarray, " M"]  # decrease of L if only this class moves, from float32 products
    own: Float64[np.ndarray, " M"]  # change of the terms of L that hold only this class
    centroids: Float32[np.ndarray, "M D"]  # after the move

    def take(self, rows: Int[np.ndarray, " _"] | slice) -> "Moves":
        return Moves(*(column[rows] for column in vars(self).values()))

    @staticmethod
    def join(parts: Sequence["Moves"]) -> "Moves":
        return Moves(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class History:
    """The state of a round: a full choice, and the moves accepted since, in order."""

    choice: Int[np.ndarray, "C ..."]  # (C, K) if images are selected
    centroids: Float32[np.ndarray, "C D"]
    moves: tuple[Moves, ...] = ()

    def end(self) -> tuple[Int[np.ndarray, "C ..."], Centroids]:
        """Return the choice and the centroids after all moves."""
        choice, centroids = self.choice.copy(), self.centroids.copy()
        for moves in self.moves:
            choice[moves.classes], centroids[moves.classes] = moves.choice, moves.centroids
        return choice, centroids

    def begins_with(self, earlier: "History") -> bool:
        """Tell whether this history continues `earlier`."""
        return (
            len(earlier.moves) <= len(self.moves)
            and np.array_equal(earlier.choice, self.choice)
            and all(
                np.array_equal(a.classes, b.classes) and np.array_equal(a.choice, b.choice)
                for a, b in zip(earlier.moves, self.moves, strict=False)
            )
        )


@dataclass
class _State:
    """The scores of a shard's candidates at the end of `history`, kept between rounds."""

    history: History
    centroids: Float32[np.ndarray, "C D"]
    choice: Int[np.ndarray, " n"]
    separations: PerCandidate


class Shard:
    """Candidates of the classes first_class ... first_class + n - 1 of `num_classes`: see `Shards`.

    `candidates` holds n arrays (G_i, D) float32 of unit length; `real` is (n, D). A rebuilt shard returns the
    same bits.
    """

    def __init__(
        self, first_class: int, candidates: Pools, real: np.ndarray, objective: Objective, num_classes: int
    ):
        assert first_class % tile_classes(num_classes) == 0, "a shard starts with a tile: see split_classes"
        check_candidates(candidates, real, first_class)
        self._num_classes, self._objective, self._candidates = num_classes, objective, candidates
        self._ids = slice(first_class, first_class + len(candidates))
        self._sizes = np.array([len(pool) for pool in candidates])
        self._offsets = offsets_of(self._sizes)
        self._classes = first_class + np.repeat(np.arange(len(candidates)), self._sizes)  # (R,)
        self._real, self._attractions = real, self._measure_attractions(real)
        self._state: _State | None = None

    def sizes(self) -> Int[np.ndarray, " n"]:
        return self._sizes

    def attractions(self) -> PerCandidate:
        return self._attractions

    def real(self) -> Float32[np.ndarray, "n D"]:
        return self._real

    def centroids(self, choice: Choice) -> Float32[np.ndarray, "n D"]:
        return pick(self._candidates, choice[self._ids])

    def candidates(self) -> Float32[np.ndarray, "R D"]:
        return np.concatenate(self._candidates)

    def series_bounds(self, choice: Choice, chosen: Float32[np.ndarray, "C D"]) -> Float64[np.ndarray, "n O"]:
        from .bound import class_bounds  # which imports this module

        return class_bounds(self, choice, chosen, self._objective)

    def propose(self, history: History, tolerance: float) -> Moves:
        state = self._follow(history)
        weight = self._objective.pair_weight(self._num_classes)
        scores = self._objective.alpha * self._attractions - weight * state.separations
        current = self._offsets[:-1] + state.choice
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
            centroids=np.stack(rows) if rows else state.centroids[:0],
        )

    def _measure_attractions(self, real: np.ndarray) -> PerCandidate:
        logs: list[np.ndarray] = []
        for rows, classes, _ in self.tiles():
            own = real[classes - self._ids.start]
            distances = 1 - np.einsum("rd,rd->r", rows.astype(np.float64), own)
            logs.append(own_logs(distances, classes, self._objective))
        return np.concatenate(logs)

    def tiles(self) -> Iterator[tuple[np.ndarray, np.ndarray, slice]]:
        """Yield per tile of classes the candidates (r, D), their classes (r,), and their slice of R."""
        tile = tile_classes(self._num_classes)
        for start in range(0, len(self._candidates), tile):
            place = slice(*self._offsets[[start, min(start + tile, len(self._candidates))]])
            yield np.concatenate(self._candidates[start : start + tile]), self._classes[place], place

    def _follow(self, history: History) -> _State:
        """Return the scores at the end of `history`, updated by its new moves or computed from its start."""
        state = self._state
        if state is None or not history.begins_with(state.history):
            centroids = history.centroids.copy()
            state = _State(
                history=History(history.choice, history.centroids),
                centroids=centroids,
                choice=history.choice[self._ids].copy(),
                separations=self._sums(centroids, np.arange(self._num_classes)),
            )
        for moves in history.moves[len(state.history.moves) :]:
            moves = moves.take(np.argsort(moves.classes))
            ids = moves.classes
            state.separations += self._sums(moves.centroids, ids) - self._sums(state.centroids[ids], ids)
            state.centroids[ids] = moves.centroids
            mine = (ids >= self._ids.start) & (ids < self._ids.stop)
            state.choice[ids[mine] - self._ids.start] = moves.choice[mine]
        state.history, self._state = history, state
        return state

    def _sums(self, columns: Float32[np.ndarray, "N D"], ids: Int[np.ndarray, " N"]) -> PerCandidate:
        """Return Σ_j log(d + ε) of every candidate to `columns` of the classes `ids` other than its own."""
        sums = np.zeros(self._offsets[-1])
        for rows, classes, place in self.tiles():
            for start in range(0, len(columns), BLOCK):
                block = slice(start, start + BLOCK)
                logs = log_distances(rows, columns[block], classes, ids[block], self._objective.epsilon)
                sums[place] += logs.sum(axis=1, dtype=np.float64)
        return sums


def tile_classes(num_classes: int) -> int:
    """Return classes per tile: enough to fill a matrix product, few enough to split small problems."""
    return min(16, max(1, num_classes // 64))


def split_classes(num_classes: int, num_shards: int) -> list[range]:
    """Return even, contiguous ranges of whole tiles, one per shard; at most one range per tile."""
    tile = tile_classes(num_classes)
    num_tiles = -(-num_classes // tile)
    num_shards = min(num_shards, num_tiles)
    ends = [min(num_classes, tile * (num_tiles * k // num_shards)) for k in range(num_shards + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def offsets_of(sizes: Int[np.ndarray, " n"]) -> Offsets:
    """Return the first candidate of each class, and the end of the last class."""
    return np.concatenate([[0], np.cumsum(sizes)])


def first_minimum(values: PerCandidate, offsets: Offsets, slack: float) -> Int[np.ndarray, " n"]:
    """Return per class the position of its first value within `slack` of its minimum.

    Equal candidates have values that differ by rounding; the first of them is taken.
    """
    least = np.repeat(np.minimum.reduceat(values, offsets[:-1]), np.diff(offsets))
    hits = np.flatnonzero(values <= least + slack)
    return hits[np.searchsorted(hits, offsets[:-1])]


def check_candidates(candidates: Pools, real: np.ndarray, first_class: int = 0) -> None:
    """Raise ValueError, with the class, unless all centroids are unit-length rows of one width."""
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
