"""Coverage of a real set by a synthetic one, in feature space, per class.

Notation (Naeem et al. 2020, Kynkäänniemi et al. 2019):
| here | meaning |
|---|---|
| x, X (N, D) | features of the real images of a class |
| y, Y (M, D) | features of its synthetic images |
| NND_k(x) | distance from x to its k-th nearest neighbour among the other real images of the class |
| ball of x | all points within NND_k(x) of x, surface included |

Distances are Euclidean, exact, and summed term by term in float32 (faiss) instead of ‖x‖² + ‖y‖² − 2xy. So a
copy is at distance 0, and rounding never moves the k-th neighbour out of the ball.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property

import faiss
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

Features = Float[np.ndarray, "_ d"]
Values = dict[str, float | list[float] | None]
LOW_DENSITY_SHARE = 0.2  # of the real images: those with the largest NND_k
DECILES = 10
COPY_PERCENTILE = 1.0


def class_mean(per_class: dict[int, Values]) -> Values:
    """Average each metric over the classes, `deciles` element-wise; None if any class has None."""
    columns = {name: [row[name] for row in per_class.values()] for name in next(iter(per_class.values()))}
    return {
        name: None if None in column else np.array(column, np.float64).mean(axis=0).tolist()
        for name, column in columns.items()
    }


class RealClass:
    """The real images (N, D) of one class, with the quantities that every comparison reuses."""

    def __init__(self, x: Features, k: int):
        nearest = _nearest2(x, k)
        self.x, self.k, self.nnd2, self.nearest2 = x, k, nearest[:, k], nearest[:, 1]

    @cached_property
    def spread(self) -> float:
        """KID's term of the real images."""
        return _among(_for_kid(self.x))


def class_metrics(real: RealClass, y: Features) -> Values:
    """Compute all metrics of the synthetic images (M, D), M at least 1, of one class.

    Compare coverage with that of a random real subset of the same size. A metric is None if the class has too
    few images for it. `deciles` is a list; the other metrics are numbers.
    """
    x, k, nnd, d = real.x, real.k, real.nnd2, _distances2(real.x, y)
    inside, nearest = d <= nnd[:, None], d.min(axis=0)
    covered = np.asarray(inside.any(axis=1))
    recall = None
    if len(y) > k:
        recall = float((d <= _neighbour_distances2(y, k)[None, :]).any(axis=1).mean())
    return {
        "coverage": float(covered.mean()),
        "low_density_coverage": float(covered[sparsest_rows(np.sqrt(nnd))].mean()),
        "deciles": deciles(covered, nnd),
        "density": float(inside.sum() / (k * len(y))),
        "precision": float(inside.any(axis=0).mean()),
        "recall": recall,
        "copy_rate": float((nearest <= _copy_threshold(real.nearest2)).mean()),
        "nearest": float(np.sqrt(nearest).mean()),
        "least_nearest": float(np.sqrt(nearest.min())),
        "vendi": vendi(y),
        "kid": kid(_for_kid(x), _for_kid(y), real.spread) if len(y) > 1 else None,
    }


def neighbour_distances(real: Features, k: int = 5) -> Float32[np.ndarray, " n"]:
    """Return NND_k of every row; needs more than k rows. Larger values mean sparser regions."""
    return np.sqrt(_neighbour_distances2(real, k))


def is_covered(real: Features, synthetic: Features, k: int = 5) -> Bool[np.ndarray, " n"]:
    """Return which real images have a synthetic image in their ball; the mean is the coverage."""
    return np.asarray(inside_balls(real, synthetic, k).any(axis=1))


def inside_balls(real: Features, points: Features, k: int = 5) -> Bool[np.ndarray, "n m"]:
    """Return which `points` (M, D) lie in the ball of which real image (N, D)."""
    return _distances2(real, points) <= _neighbour_distances2(real, k)[:, None]


def deciles(covered: Bool[np.ndarray, " n"], nnd: Float[np.ndarray, " n"]) -> list[float] | None:
    """Return the coverage of each tenth of the real images, densest first; None below 10 images."""
    if len(nnd) < DECILES:
        return None
    return [float(covered[rows].mean()) for rows in np.array_split(np.argsort(nnd, kind="stable"), DECILES)]


def sparsest_rows(nnd: Float[np.ndarray, " n"]) -> Int[np.ndarray, " s"]:
    """Return the rows of the LOW_DENSITY_SHARE with the largest NND_k, at least one; ties by row."""
    return np.argsort(-nnd, kind="stable")[: max(1, round(LOW_DENSITY_SHARE * len(nnd)))]


def find_copies(real: Features, others: Features) -> tuple[Int[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Return the row of the nearest real image for each other image, and whether it counts as a copy.

    Both sets are of one class. A copy is as near to a real image as the nearest percent of real images are to
    each other, so about 1 % of fresh real images count too. Needs at least two real images.
    """
    distances, rows = _search(real, others, 1)
    return rows[:, 0], distances[:, 0] <= _copy_threshold(_neighbour_distances2(real, 1))


def became_copies(real: Features, before: Features, after: Features) -> Bool[np.ndarray, " m"]:
    """Tell which images are copies `after` a change, and were none `before`. One real image has no copies."""
    if len(real) < 2:
        return np.zeros(len(after), bool)
    return find_copies(real, after)[1] & ~find_copies(real, before)[1]


def _copy_threshold(nearest2: Float32[np.ndarray, " n"]) -> float:
    """Return the largest squared distance of a copy, from those of real images to their nearest other."""
    return float(np.percentile(nearest2, COPY_PERCENTILE))


def vendi(features: Features) -> float:
    """Vendi score (Friedman & Dieng 2023): exp(−Σ λ log λ), λ the eigenvalues of K/n, K the cosines.

    An effective number of distinct images: 1 (all alike) to n (all orthogonal).
    """
    x = features.astype(np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x  # same nonzero eigenvalues
    eigenvalues = np.linalg.eigvalsh(gram / len(x))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


def kid(x: Features, y: Features, spread: float | None = None) -> float:
    """Kernel inception distance (Bińkowski et al. 2018): unbiased squared MMD; may be negative.

    Values should be about 1: for rows of length 1, the kernel (xy/D + 1)³ hardly sees more than the means.
    Needs at least two rows per set. `spread` is the term of `x`, if known.
    """
    among_x = _among(x) if spread is None else spread
    return float(among_x + _among(y) - 2 * _kernel(x, y).mean())


def _for_kid(x: Features) -> Float[np.ndarray, "_ d"]:
    """Scale unit-length features to values of about 1."""
    return (x * x.shape[1] ** 0.5).astype(np.float64)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _among(a: np.ndarray) -> float:
    """Mean kernel over all pairs of different rows."""
    values = _kernel(a, a)
    return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))


@contextmanager
def _term_by_term() -> Generator[None, None, None]:
    """Disable faiss's matrix-product shortcut, which rounds a copy's distance away from 0."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def _distances2(x: Features, y: Features) -> Float32[np.ndarray, "n m"]:
    """Squared distances of every row of x to every row of y."""
    order = _search(y, x, len(y))
    distances = np.empty((len(x), len(y)), np.float32)
    np.put_along_axis(distances, order[1], order[0], axis=1)
    return distances


def _neighbour_distances2(x: Features, k: int) -> Float32[np.ndarray, " n"]:
    """Squared NND_k."""
    return _nearest2(x, k)[:, k]


def _nearest2(x: Features, k: int) -> Float32[np.ndarray, "n _"]:
    """Squared distances to the k + 1 nearest rows, of which one is the row itself, at distance 0."""
    if len(x) <= k:
        raise ValueError(f"k: {k} neighbours need at least {k + 1} rows, not {len(x)}")
    return _search(x, x, k + 1)[0]


def _search(base: Features, queries: Features, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and rows of the `count` rows of `base` nearest to each query, nearest first."""
    index = faiss.IndexFlatL2(base.shape[1])
    index.add(np.ascontiguousarray(base, np.float32))
    with _term_by_term():
        return index.search(np.ascontiguousarray(queries, np.float32), count)
