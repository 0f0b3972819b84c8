"""How well a synthetic set covers a real one, in feature space, class by class.

Notation (Naeem et al. 2020, Kynkäänniemi et al. 2019):
| here | meaning |
|---|---|
| x, X (N, D) | features of the real images of a class |
| y, Y (M, D) | features of its synthetic images |
| NND_k(x) | distance from x to its k-th nearest neighbour among the other real images of its class |
| ball of x | all points within NND_k(x) of x, its surface included |

Distances are Euclidean, summed term by term in float32 (faiss, exact), not through ‖x‖² + ‖y‖² − 2xy: so a
copy is at distance 0, and an image's k-th neighbour lies on the surface of its ball, never outside by
rounding.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

Features = Float[np.ndarray, "_ d"]
Values = dict[str, float | list[float] | None]
LOW_DENSITY_SHARE = 0.2  # the fifth of the real images with the largest NND_k
DECILES = 10
COPY_PERCENTILE = 1.0


@dataclass(frozen=True)
class ClassCoverage:
    """Each metric by name, over the classes and per class; None where a class has too few images for it.

    `deciles` is a list, the others are numbers.
    """

    mean: Values
    per_class: dict[int, Values]


def class_coverage(
    real: Features,
    real_labels: Int[np.ndarray, " n"],
    synthetic: Features,
    synthetic_labels: Int[np.ndarray, " m"],
    k: int = 5,
) -> ClassCoverage:
    """All metrics of this module, inside each class that the real images have, and averaged over the classes.

    With few synthetic images a class, read coverage beside its value for a random real subset of the same
    size. Raises ValueError for a class with k real images or fewer, or with no synthetic image.
    """
    per_class = {}
    for label in np.unique(real_labels):
        x, y = real[real_labels == label], synthetic[synthetic_labels == label]
        if len(x) <= k:
            raise ValueError(f"class {label}: {len(x)} real images; k = {k} neighbours need at least {k + 1}")
        if len(y) == 0:
            raise ValueError(f"class {label}: no synthetic image, but {len(x)} real ones")
        per_class[int(label)] = class_metrics(RealClass(x, k), y)
    return ClassCoverage(class_mean(per_class), per_class)


def class_mean(per_class: dict[int, Values]) -> Values:
    """Each metric averaged over the classes, `deciles` one by one; None where a class has none."""
    columns = {name: [row[name] for row in per_class.values()] for name in next(iter(per_class.values()))}
    return {
        name: None if None in column else np.array(column, np.float64).mean(axis=0).tolist()
        for name, column in columns.items()
    }


class RealClass:
    """A class's real images (N, D), and what is known of them once for all sets that are compared to them."""

    def __init__(self, x: Features, k: int):
        nearest = _nearest2(x, k)
        self.x, self.k, self.nnd2, self.nearest2 = x, k, nearest[:, k], nearest[:, 1]

    @cached_property
    def spread(self) -> float:
        """The term of KID that is of the real images alone."""
        return _among(_for_kid(self.x))


def class_metrics(real: RealClass, y: Features) -> Values:
    """Every metric of the synthetic images (M, D) of one class, M at least 1."""
    x, k, nnd, d = real.x, real.k, real.nnd2, _distances2(real.x, y)
    inside = d <= nnd[:, None]
    covered_by_some = np.asarray(inside.any(axis=1))
    recall = None
    if len(y) > k:
        recall = float((d <= _neighbour_distances2(y, k)[None, :]).any(axis=1).mean())
    return {
        "coverage": float(covered_by_some.mean()),
        "low_density_coverage": float(covered_by_some[sparsest_rows(np.sqrt(nnd))].mean()),
        "deciles": deciles(covered_by_some, nnd),
        "density": float(inside.sum() / (k * len(y))),
        "precision": float(inside.any(axis=0).mean()),
        "recall": recall,
        "copy_rate": float(_copies(x, real.nearest2, y)[1].mean()),
        **nearest_distances(x, y),
        "vendi": vendi(y),
        "kid": _kid(_for_kid(x), _for_kid(y), real.spread) if len(y) > 1 else None,
    }


def neighbour_distances(real: Features, k: int = 5) -> Float32[np.ndarray, " n"]:
    """NND_k of every row among the others, more than k: the larger, the sparser the region it lies in."""
    return np.sqrt(_neighbour_distances2(real, k))


def is_covered(real: Features, synthetic: Features, k: int = 5) -> Bool[np.ndarray, " n"]:
    """Which real images have a synthetic one of their class in their ball; the share is the coverage."""
    return np.asarray(inside_balls(real, synthetic, k).any(axis=1))


def inside_balls(real: Features, points: Features, k: int = 5) -> Bool[np.ndarray, "n m"]:
    """Which of `points` (M, D) lie in the ball of which real image (N, D)."""
    return _distances2(real, points) <= _neighbour_distances2(real, k)[:, None]


def deciles(covered: Bool[np.ndarray, " n"], nnd: Float[np.ndarray, " n"]) -> list[float] | None:
    """Coverage of each tenth of the real images, the densest (least NND_k) first; None below 10 images."""
    if len(nnd) < DECILES:
        return None
    return [float(covered[rows].mean()) for rows in np.array_split(np.argsort(nnd, kind="stable"), DECILES)]


def sparsest_rows(nnd: Float[np.ndarray, " n"], share: float = LOW_DENSITY_SHARE) -> Int[np.ndarray, " s"]:
    """Rows of the `share` of the images with the largest NND_k, at least one; ties by row."""
    return np.argsort(-nnd, kind="stable")[: max(1, round(share * len(nnd)))]


def find_copies(real: Features, others: Features) -> tuple[Int[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """The real image nearest to each other image, and whether that one counts as its copy.

    A copy is as near to a real image as the nearest percent of real images are to each other; both of one
    class. Of fresh images from the real distribution about one percent count. Needs at least two real images.
    """
    return _copies(real, _neighbour_distances2(real, 1), others)


def _copies(
    real: Features, nearest2: Float32[np.ndarray, " n"], others: Features
) -> tuple[np.ndarray, np.ndarray]:
    """`copies`, by the squared distances (N,) of the real images to each other's nearest."""
    threshold = np.percentile(nearest2, COPY_PERCENTILE)
    distances, rows = _search(real, others, 1)
    return rows[:, 0], distances[:, 0] <= threshold


def nearest_distances(real: Features, synthetic: Features) -> dict[str, float]:
    """Distance from a synthetic image to the nearest real one: the mean over the images, and the least."""
    distances = np.sqrt(_search(real, synthetic, 1)[0][:, 0])
    return {"nearest": float(distances.mean()), "least_nearest": float(distances.min())}


def vendi(features: Features) -> float:
    """exp(−Σ λ log λ) of the eigenvalues of K/n, K the cosine similarities: a number of distinct images.

    Friedman & Dieng 2023. From 1 (all alike) to n (all orthogonal).
    """
    x = features.astype(np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x  # the same eigenvalues, zeros apart
    eigenvalues = np.linalg.eigvalsh(gram / len(x))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


def kid(real: Features, synthetic: Features) -> float:
    """Unbiased squared MMD with the kernel (xy/D + 1)³ (Bińkowski et al. 2018); may be below 0.

    Values of the features should be about 1 in size: of rows of length 1 the kernel sees hardly more than the
    means. Needs at least two rows in each set.
    """
    if min(len(real), len(synthetic)) < 2:
        raise ValueError(
            f"kid: needs at least 2 real and 2 synthetic rows, not {len(real)} and {len(synthetic)}"
        )
    x, y = real.astype(np.float64), synthetic.astype(np.float64)
    return _kid(x, y, _among(x))


def _for_kid(x: Features) -> Float[np.ndarray, "_ d"]:
    """Features of length 1 with values of about 1."""
    return (x * x.shape[1] ** 0.5).astype(np.float64)


def _kid(x: np.ndarray, y: np.ndarray, among_x: float) -> float:
    return float(among_x + _among(y) - 2 * _kernel(x, y).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _among(a: np.ndarray) -> float:
    """Mean kernel of every two rows."""
    values = _kernel(a, a)
    return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))


@contextmanager
def _term_by_term() -> Generator[None, None, None]:
    """Keep faiss from its matrix-product shortcut, which rounds a copy's distance to other than 0."""
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
