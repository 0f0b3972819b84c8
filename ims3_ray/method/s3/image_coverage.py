"""Coverage of a class's real images by chosen images, and its change by each swap: k-medoids.

    coverage(S) = mean over real x of max_{n in S} v(n, x), v(n, x) = 1 - |f_n - x| / 2
The notation is that of `image_selection`.
"""

import numpy as np
from jaxtyping import Float, Float64, Int

BLOCK_COVERS = 2**24  # values of a block of real images × candidates
Chosen = Int[np.ndarray, " K"]
Free = Int[np.ndarray, " F"]
Table = Float64[np.ndarray, "M N"]


def closeness_table(real: Float[np.ndarray, "M D"], images: Float[np.ndarray, "N D"]) -> Table:
    """Return 1 - |f - x| / 2, in [0, 1], of each real image and each image; features of unit length."""
    table = real.astype(np.float64) @ images.astype(np.float64).T
    table *= -2  # in place: a large class's table takes a gigabyte
    table += 2
    np.sqrt(np.maximum(table, 0, out=table), out=table)
    table /= -2
    table += 1
    return on_grid(table)


def on_grid(values: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Round non-negative values in place to 32 bits, so that sums of two million are exact in any order."""
    step = 2.0 ** (np.frexp(values.max())[1] - 32)
    values /= step
    np.rint(values, out=values)
    values *= step
    return values


def covered_share(covers: Table, chosen: Chosen) -> float:
    """Return coverage(S) of the columns `chosen`."""
    return float(covers[:, chosen].max(axis=1).mean())


class CoverageChanges:
    """The change of coverage(S) by each swap (Schubert & Rousseeuw 2019, FastPAM1).

    If the replaced image was a real image's best, its second best or the new one takes over; otherwise the
    new one can only add. Another choice changes the best two of few real images: the sums over the others
    are kept. No bit depends on earlier calls if `covers` are `on_grid`.
    """

    def __init__(self, covers: Table):
        rows, images = covers.shape
        self.covers = covers
        self._best, self._second = np.full(rows, -1), np.zeros(rows)
        self._gained = np.zeros(images)  # by each image beside the chosen ones
        self._taken_over: dict[int, np.ndarray] = {}  # by each image instead of the key

    def by_swap(self, chosen: Chosen, free: Free) -> Float64[np.ndarray, "K F"]:
        """Return the changes if one of `chosen` is replaced by one of `free`."""
        of_chosen = self.covers[:, chosen]
        best, second = chosen[of_chosen.argmax(axis=1)], np.zeros(len(of_chosen))
        if len(chosen) > 1:
            second = np.partition(of_chosen, -2, axis=1)[:, -2]
        is_other = (best != self._best) | (second != self._second)
        self._add(np.flatnonzero(is_other & (self._best >= 0)), -1)
        self._best, self._second = best, second
        sums, zero = self._taken_over, np.zeros_like(self._gained)
        self._taken_over = {n: sums[n] if n in sums else zero.copy() for n in chosen.tolist()}
        self._add(np.flatnonzero(is_other), 1)
        return (self._gained + np.stack([*self._taken_over.values()]))[:, free] / len(of_chosen)

    def _add(self, rows: Int[np.ndarray, " m"], sign: int) -> None:
        """Add the terms of the real images `rows` to the sums, or take them away."""
        size = max(1, BLOCK_COVERS // len(self._gained))
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            best, more = self._best[block], self.covers[block]
            now = more[np.arange(len(block)), best][:, None]
            more -= now
            self._gained += sign * np.maximum(more, 0).sum(axis=0)
            np.clip(more, self._second[block][:, None] - now, 0, out=more)
            for image, terms in zip(best.tolist(), more, strict=True):
                self._taken_over[image] += sign * terms
