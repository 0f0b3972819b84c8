"""What a set misses: the real images that none of its images covers, in feature space."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ims3_ray.method.coverage import is_covered, neighbour_distances

SHOWN = 3  # images a class: enough to see a kind of image that is missing


@dataclass(frozen=True)
class Missed:
    """Of one class: the rows to show, sparsest first, the number not covered, and that of real images."""

    rows: Int[np.ndarray, " s"]
    count: int
    total: int


def missed(
    real: Float[np.ndarray, "n d"],
    real_labels: Int[np.ndarray, " n"],
    synthetic: Float[np.ndarray, "m d"],
    synthetic_labels: Int[np.ndarray, " m"],
    *,
    labels: Iterable[int],
    k: int,
) -> dict[int, Missed]:
    """By label, for those of `labels` where it is defined: more than k real images, and a synthetic one.

    Covered is as in coverage: a synthetic image of the class within NND_k. `rows` are at most three rows of
    `real`.
    """
    by_label: dict[int, Missed] = {}
    for label in labels:
        rows, y = np.flatnonzero(real_labels == label), synthetic[synthetic_labels == label]
        if len(rows) <= k or len(y) == 0:
            continue
        x = real[rows]
        outside = ~is_covered(x, y, k)
        sparsest_first = np.argsort(-neighbour_distances(x, k), kind="stable")
        shown = rows[sparsest_first[outside[sparsest_first]]][:SHOWN]
        by_label[label] = Missed(shown, int(outside.sum()), len(rows))
    return by_label
