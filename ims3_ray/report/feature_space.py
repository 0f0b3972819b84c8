"""Feature-space analysis of a set: uncovered real images, and a t-SNE map."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from ims3_ray.method.coverage import is_covered, neighbour_distances

from .inputs import ReportData

MAX_UNCOVERED = 3  # images per class: enough to recognise a kind of image that is missing
MAX_SELECTED, MAX_CANDIDATES, MAX_POINTS = 300, 500, 1500  # on the map
SEED = 0


@dataclass(frozen=True)
class UncoveredRows:
    """Rows of a class's uncovered real images, sparsest first; how many are uncovered; all real images."""

    rows: Int[np.ndarray, " s"]
    count: int
    total: int


def find_uncovered(
    real: Float[np.ndarray, "n d"],
    real_labels: Int[np.ndarray, " n"],
    synthetic: Float[np.ndarray, "m d"],
    synthetic_labels: Int[np.ndarray, " m"],
    *,
    labels: Iterable[int],
    k: int,
) -> dict[int, UncoveredRows]:
    """Uncovered real images by label; covered means that a synthetic image of the class is within NND_k.

    Skips classes with at most k real images or without a synthetic one. `rows` has at most three rows.
    """
    by_label: dict[int, UncoveredRows] = {}
    for label in labels:
        rows, y = np.flatnonzero(real_labels == label), synthetic[synthetic_labels == label]
        if len(rows) <= k or len(y) == 0:
            continue
        x = real[rows]
        outside = ~is_covered(x, y, k)
        sparsest_first = np.argsort(-neighbour_distances(x, k), kind="stable")
        examples = rows[sparsest_first[outside[sparsest_first]]][:MAX_UNCOVERED]
        by_label[label] = UncoveredRows(examples, int(outside.sum()), len(rows))
    return by_label


@dataclass(frozen=True)
class Map:
    """Points by kind (real, candidate, selected), their labels, and the number of images of each kind."""

    points: dict[str, Float[np.ndarray, "_ 2"]]
    labels: dict[str, Int[np.ndarray, " _"]]
    totals: dict[str, int]

    def of_class(self, kind: str, label: int) -> Float[np.ndarray, "_ 2"]:
        return self.points[kind][self.labels[kind] == label]


def feature_map(data: ReportData, classes: list[int]) -> Map | None:
    """t-SNE of the features of `classes`, at most 1,500 (seeded). None for fewer than four images."""
    real = data.real_features, data.real_labels
    candidates = data.candidate_features, data.candidate_labels
    in_classes, selected = np.isin(candidates[1], classes), data.candidate_selected
    rng, remaining = np.random.default_rng(SEED), MAX_POINTS
    vectors: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    totals: dict[str, int] = {}
    for kind, (features, all_labels), mask, limit in (
        ("selected", candidates, in_classes & selected, MAX_SELECTED),
        ("candidate", candidates, in_classes & ~selected, MAX_CANDIDATES),
        ("real", real, np.isin(real[1], classes), MAX_POINTS),
    ):
        all_rows = np.flatnonzero(mask)
        rows = np.sort(rng.permutation(all_rows)[: min(limit, remaining)])
        vectors[kind], labels[kind], totals[kind] = features[rows], all_labels[rows], len(all_rows)
        remaining -= len(rows)
    if MAX_POINTS - remaining < 4:
        return None
    points = tsne(np.concatenate(list(vectors.values())).astype(np.float32))
    parts = np.split(points, np.cumsum([len(part) for part in vectors.values()])[:-1])
    return Map(dict(zip(vectors, parts, strict=True)), labels, totals)


def tsne(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """t-SNE of directions (cosine neighbourhoods), on one thread: multi-threaded sums differ between runs."""
    from sklearn.manifold import TSNE  # takes a second to import; plans do not need it

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=SEED).fit_transform(unit)
