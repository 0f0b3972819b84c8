"""A map of features: t-SNE of real images, candidates and selected images, the same for the same input."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from .inputs import Features

MAX_SELECTED, MAX_CANDIDATES, MAX_POINTS = 300, 500, 1500
SEED = 0


@dataclass(frozen=True)
class Map:
    """Points on the map, their classes, and how many of the set's images each kind stands for."""

    points: dict[str, Float[np.ndarray, "_ 2"]]
    labels: dict[str, Int[np.ndarray, " _"]]
    totals: dict[str, int]


def feature_map(features: Features, classes: list[int]) -> Map | None:
    """t-SNE of the unit-length features of `classes`, at most 1,500 in all: a seeded subset where there are more.

    None where fewer than four images are left: a map needs neighbours.
    """
    rng, kinds = np.random.default_rng(SEED), {}
    of_real = np.isin(features.real_labels, classes)
    of_candidates = np.isin(features.candidate_labels, classes)
    rows, totals, left = {}, {}, MAX_POINTS
    for kind, mask, limit in (
        ("selected", of_candidates & features.selected, MAX_SELECTED),
        ("candidate", of_candidates & ~features.selected, MAX_CANDIDATES),
        ("real", of_real, MAX_POINTS),
    ):
        found = np.flatnonzero(mask)
        rows[kind] = np.sort(rng.permutation(found)[: min(limit, left)])
        totals[kind], left = len(found), left - len(rows[kind])
        kinds[kind] = features.real if kind == "real" else features.candidates
    vectors = np.concatenate([kinds[kind][rows[kind]] for kind in rows]).astype(np.float32)
    if len(vectors) < 4:
        return None
    points = np.split(tsne(vectors), np.cumsum([len(r) for r in rows.values()])[:-1])
    sources = {kind: features.real_labels if kind == "real" else features.candidate_labels for kind in rows}
    labels = {kind: sources[kind][rows[kind]] for kind in rows}
    return Map(dict(zip(rows, points, strict=True)), labels, totals)


def tsne(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """t-SNE of directions (cosine neighbourhoods). One thread: sums over several threads differ from run to run."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=SEED).fit_transform(unit)
