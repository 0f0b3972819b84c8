"""Coresets: the real-image baselines that a synthetic set is compared with.

Notation: X (N, D) features of the real images of one class, μ their mean. Every function returns `count`
distinct rows of X, int64, in the order of their selection. Ties go to the first row. Distances are Euclidean.
"""

import warnings

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from .coverage import inside_balls
from .s3.image_coverage import CoverageChanges, on_grid
from .seeding import key_seed

Features = Float[np.ndarray, "n d"]
Rows = Int[np.ndarray, " count"]
RESTARTS = 10  # of k-means; the one with the least sum of squares wins


def herding(x: Features, count: int) -> Rows:
    """Select images whose mean stays near the class mean: x_t = argmin ‖μ − (x_1 + … + x_{t−1} + x)/t‖.

    Welling 2009, without replacement as in Rebuffi et al. 2017, eq. 4.
    """
    _check(x, count)
    x = x.astype(np.float64)
    mean, total, taken = x.mean(axis=0), np.zeros(x.shape[1]), np.zeros(len(x), bool)
    rows = []
    for t in range(1, count + 1):
        errors = ((t * mean - total - x) ** 2).sum(axis=1)
        rows.append(int(np.where(taken, np.inf, errors).argmin()))
        taken[rows[-1]] = True
        total += x[rows[-1]]
    return np.array(rows)


def k_center(x: Features, count: int) -> Rows:
    """Select the image nearest to μ, then repeatedly the image farthest from the selected ones.

    The covering radius is at most twice the smallest possible (Gonzalez 1985; Sener & Savarese 2018, alg. 1).
    """
    _check(x, count)
    x = x.astype(np.float64)
    rows = [int(((x - x.mean(axis=0)) ** 2).sum(axis=1).argmin())]
    nearest = ((x - x[rows[0]]) ** 2).sum(axis=1)
    nearest[rows[0]] = -1.0  # below a duplicate's 0: each row is selected once
    while len(rows) < count:
        rows.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((x - x[rows[-1]]) ** 2).sum(axis=1))
        nearest[rows[-1]] = -1.0
    return np.array(rows)


def medoids(x: Features, count: int, *key: int | str) -> Rows:
    """Select the image nearest to each of `count` k-means centroids, largest cluster first.

    Lloyd's algorithm with RESTARTS k-means++ starts (Arthur & Vassilvitskii 2007), seeded by `key`. If a
    centroid's nearest image is taken, the nearest free image is selected. One thread keeps the order of sums
    fixed.
    """
    from sklearn.cluster import KMeans  # slow import, needed here only
    from sklearn.exceptions import ConvergenceWarning

    _check(x, count)
    x = x.astype(np.float64)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # duplicates leave clusters empty; the nearest free images are selected
        seed = key_seed("medoids", *key) % 2**32
        clusters = KMeans(count, n_init=RESTARTS, random_state=seed).fit(x)  # pyright: ignore[reportArgumentType]: n_init
    sizes = np.bincount(np.asarray(clusters.labels_), minlength=count)
    rows, free = [], np.ones(len(x), bool)
    for cluster in np.argsort(-sizes, kind="stable"):
        distances = ((x - clusters.cluster_centers_[cluster]) ** 2).sum(axis=1)
        rows.append(int(np.where(free, distances, np.inf).argmin()))
        free[rows[-1]] = False
    return np.array(rows)


def k_medoids(x: Features, count: int) -> Rows:
    """Select the images that minimise the mean distance of all images to the nearest selected one.

    PAM (Kaufman & Rousseeuw 1990): greedy build, then the best swap of a selected and a free image, repeated
    until no swap helps. A local optimum.
    """
    _check(x, count)
    closeness = cdist(x.astype(np.float64), x.astype(np.float64))
    np.subtract(closeness.max(), closeness, out=closeness)  # N² values: several copies may not fit
    on_grid(closeness)
    rows = np.empty(0, np.int64)
    best = np.zeros(len(x))
    for _ in range(count):
        gains = np.array([np.maximum(row - best, 0).sum() for row in closeness])
        gains[rows] = -1.0
        rows = np.append(rows, gains.argmax())
        best = np.maximum(best, closeness[rows[-1]])
    free, coverage = np.setdiff1d(np.arange(len(x)), rows), CoverageChanges(closeness)
    while len(free):
        changes = coverage.by_swap(rows, free)
        out, into = np.unravel_index(changes.argmax(), changes.shape)
        if changes[out, into] <= 0:
            break
        rows[out], free[into] = free[into], rows[out]
    return rows


def greedy_coverage(x: Features, count: int, k: int = 5) -> Rows:
    """Select each time the image that lies in the most balls of `coverage` without a selected image.

    When all balls are covered, the rest are taken by row. The coverage is at least 1 − 1/e of the best that
    `count` real images reach (Nemhauser et al. 1978).
    """
    _check(x, count)
    return greedy_cover(inside_balls(x, x, k), count)


def greedy_cover(covers: Bool[np.ndarray, "n m"], count: int) -> Rows:
    """Select distinct columns of `covers`, each with the most uncovered rows; ties go to the first."""
    gains, free = covers.sum(axis=0), np.ones(covers.shape[1], bool)
    uncovered = np.ones(len(covers), bool)
    rows = []
    for _ in range(count):
        rows.append(int(np.where(free, gains, -1).argmax()))
        free[rows[-1]] = False
        new = uncovered & covers[:, rows[-1]]
        gains = gains - covers[new].sum(axis=0)
        uncovered &= ~new
    return np.array(rows)


def _check(x: Features, count: int) -> None:
    if not 1 <= count <= len(x):
        raise ValueError(f"count: must be 1 to {len(x)}, the number of images, not {count}")
