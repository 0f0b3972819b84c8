"""A map of features: t-SNE of real images, candidates and selected images, the same for the same input."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from .inputs import ReportData

MAX_SELECTED, MAX_CANDIDATES, MAX_POINTS = 300, 500, 1500
SEED = 0


@dataclass(frozen=True)
class Map:
    """Points on the map, their classes, and how many of the set's images each kind stands for."""

    points: dict[str, Float[np.ndarray, "_ 2"]]
    labels: dict[str, Int[np.ndarray, " _"]]
    totals: dict[str, int]

    def of_class(self, kind: str, label: int) -> Float[np.ndarray, "_ 2"]:
        return self.points[kind][self.labels[kind] == label]


def feature_map(data: ReportData, classes: list[int]) -> Map | None:
    """t-SNE of the unit-length features of `classes`, at most 1,500: a seeded subset where there are more.

    None where fewer than four images are left: a map needs neighbours.
    """
    real, candidates = (
        (data.real_features, data.real_labels),
        (data.candidate_features, data.candidate_labels),
    )
    of_candidates, selected = np.isin(candidates[1], classes), data.candidate_selected
    rng, left = np.random.default_rng(SEED), MAX_POINTS
    vectors: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    totals: dict[str, int] = {}
    for kind, (features, labels_of), mask, limit in (
        ("selected", candidates, of_candidates & selected, MAX_SELECTED),
        ("candidate", candidates, of_candidates & ~selected, MAX_CANDIDATES),
        ("real", real, np.isin(real[1], classes), MAX_POINTS),
    ):
        of_kind = np.flatnonzero(mask)
        rows = np.sort(rng.permutation(of_kind)[: min(limit, left)])
        vectors[kind], labels[kind], totals[kind] = features[rows], labels_of[rows], len(of_kind)
        left -= len(rows)
    if MAX_POINTS - left < 4:
        return None
    points = tsne(np.concatenate(list(vectors.values())).astype(np.float32))
    parts = np.split(points, np.cumsum([len(part) for part in vectors.values()])[:-1])
    return Map(dict(zip(vectors, parts, strict=True)), labels, totals)


def tsne(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """t-SNE of directions (cosine neighbourhoods). One thread: sums over several differ from run to run."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=SEED).fit_transform(unit)
