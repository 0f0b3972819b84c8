"""Real images that stand for their class: the baselines that a synthetic set is held against.

Notation: X (N, D) features of the real images of one class, μ their mean. Every function gives distinct rows
of X (count,) int64, in the order in which they were chosen; among equals the first row is taken. Distances
are Euclidean.
"""

import warnings

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from .coverage import inside_balls
from .s3.image_selection import coverage_changes
from .seeding import key_seed

Features = Float[np.ndarray, "n d"]
Rows = Int[np.ndarray, " count"]
SWAP_TOLERANCE = 1e-12  # of the largest distance: less is round-off, and two swaps could take turns for ever
RESTARTS = 10  # of k-means, each from centres of its own; the one with the least sum of squares is kept


def herding(x: Features, count: int) -> Rows:
    """x_t = argmin ‖μ − (x_1 + … + x_{t−1} + x)/t‖: images whose mean stays near to the class's.

    Welling 2009, without replacement, as Rebuffi et al. 2017, eq. 4.
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
    """Each the image farthest from those chosen, the first nearest to μ: small balls hold all of X.

    Gonzalez 1985, at most twice the smallest radius; Sener & Savarese 2018, algorithm 1.
    """
    _check(x, count)
    x = x.astype(np.float64)
    rows = [int(((x - x.mean(axis=0)) ** 2).sum(axis=1).argmin())]
    nearest = ((x - x[rows[0]]) ** 2).sum(axis=1)
    nearest[rows[0]] = -1.0  # below a duplicate's 0: taken only once
    while len(rows) < count:
        rows.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((x - x[rows[-1]]) ** 2).sum(axis=1))
        nearest[rows[-1]] = -1.0
    return np.array(rows)


def medoids(x: Features, count: int, *key: int | str) -> Rows:
    """The image nearest to each of `count` k-means centroids, the largest cluster's first.

    Lloyd's algorithm from k-means++ centres (Arthur & Vassilvitskii 2007) drawn for `key`, RESTARTS times. A
    centroid whose nearest image is taken gets the nearest free one. On one thread, whose sums have one order.
    """
    from sklearn.cluster import KMeans  # as long to import as torch, in every worker that draws images
    from sklearn.exceptions import ConvergenceWarning

    _check(x, count)
    x = x.astype(np.float64)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of duplicates: the nearest free images fill up
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
    """The images with the least mean distance of all to the nearest of them, as far as swaps find them.

    PAM (Kaufman & Rousseeuw 1990): greedily built, then the best swap of a chosen and a free image while one
    helps.
    """
    _check(x, count)
    d = cdist(x.astype(np.float64), x.astype(np.float64))
    closeness = d.max() - d
    rows = np.empty(0, np.int64)
    best = np.zeros(len(x))
    for _ in range(count):
        gains = np.maximum(closeness - best, 0).sum(axis=1)
        gains[rows] = -1.0
        rows = np.append(rows, gains.argmax())
        best = np.maximum(best, closeness[rows[-1]])
    free = np.setdiff1d(np.arange(len(x)), rows)
    while len(free):
        changes = coverage_changes(closeness, rows, free)
        out, into = np.unravel_index(changes.argmax(), changes.shape)
        if changes[out, into] <= SWAP_TOLERANCE * d.max():
            break
        rows[out], free[into] = free[into], rows[out]
    return rows


def greedy_coverage(x: Features, count: int, k: int = 5) -> Rows:
    """Each the image that lies in most balls of `coverage` that hold none of those chosen; then any, by row.

    Its coverage is at least 1 − 1/e of what any `count` real images reach (Nemhauser et al. 1978).
    """
    _check(x, count)
    return greedy_cover(inside_balls(x, x, k), count)


def greedy_cover(covers: Bool[np.ndarray, "n m"], count: int) -> Rows:
    """Columns of `covers`, each with the most rows that none before it has; distinct, first among equals."""
    gains, free = covers.sum(axis=0), np.ones(covers.shape[1], bool)
    left = np.ones(len(covers), bool)
    rows = []
    for _ in range(count):
        rows.append(int(np.where(free, gains, -1).argmax()))
        free[rows[-1]] = False
        new = left & covers[:, rows[-1]]
        gains = gains - covers[new].sum(axis=0)
        left &= ~new
    return np.array(rows)


def _check(x: Features, count: int) -> None:
    if not 1 <= count <= len(x):
        raise ValueError(f"count: {count} of {len(x)} images; choose 1 to {len(x)}")
