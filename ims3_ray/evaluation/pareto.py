"""The Pareto front: what nothing else beats in every figure at once."""

import numpy as np


def pareto_front(figures: np.ndarray) -> list[int]:
    """Rows of `figures` (N, M), larger being better, that no other row dominates: as good in all, better in
    one.

    Sorted by the first figure, best first; ties by the others, then by row. Rows with a NaN are left out,
    equal rows stay.
    """
    figures = np.asarray(figures, dtype=np.float64)
    if figures.ndim != 2:
        raise ValueError(f"figures: {figures.shape}; give rows of figures (N, M)")
    kept = np.flatnonzero(~np.isnan(figures).any(axis=1))
    order = kept[np.lexsort((kept, *(-figures[kept]).T[::-1]))]
    front: list[int] = []
    for row in order:  # none behind it in this order can dominate it
        ahead = figures[front]
        if not ((ahead >= figures[row]).all(axis=1) & (ahead > figures[row]).any(axis=1)).any():
            front.append(int(row))
    return front
