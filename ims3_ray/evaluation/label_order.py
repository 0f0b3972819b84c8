"""Detect swapped classes: generator, extractor and folders may number the classes differently.

Each image is assigned to the class with the nearest real centroid. The best one-to-one matching of a set's
classes to the real classes (Kuhn's assignment) separates permuted labels from poor images: for poor images
it is still the identity.
"""

from collections.abc import Sequence
from typing import TypedDict

import faiss
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

MAJORITY = 0.5  # share of a class's images that must look like another class to call it swapped
POOR = 0.5  # warn if own_share is below this fraction of real_share


class ClassOrder(TypedDict):
    """Shares of images that look like their own class: in the set, in the real images, per class."""

    own_share: float
    real_share: float
    per_class: dict[str, float]
    looks_like: dict[str, str]  # swapped classes


def check_class_order(
    real: Float[np.ndarray, "n d"],
    real_labels: Int[np.ndarray, " n"],
    other: Float[np.ndarray, "m d"],
    labels: Int[np.ndarray, " m"],
    classes: Sequence[str],
) -> tuple[ClassOrder, list[str]]:
    """The class order of features `other`, and warnings. Both label arrays index `classes`."""
    of_classes = class_centroids(real, real_labels, len(classes))
    assigned, of_real = nearest_class(other, of_classes), nearest_class(real, of_classes)
    shares = assignment_shares(labels, assigned, len(classes))
    swapped = swapped_classes(shares)
    order: ClassOrder = {
        "own_share": float((assigned == labels).mean()),
        "real_share": float((of_real == real_labels).mean()),
        "per_class": {classes[int(c)]: float(shares[c, c]) for c in np.unique(labels)},
        "looks_like": {classes[c]: classes[d] for c, d in swapped.items()},
    }
    return order, _warnings(shares, swapped, order, classes)


def class_centroids(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], num_classes: int
) -> Float[np.ndarray, "c d"]:
    """Each class's mean feature, scaled to length 1; NaN for a class without images."""
    means = np.full((num_classes, features.shape[1]), np.nan)
    for label in np.unique(labels):
        mean = features[labels == label].mean(axis=0, dtype=np.float64)
        means[label] = mean / max(np.linalg.norm(mean), 1e-12)
    return means


def nearest_class(
    features: Float[np.ndarray, "m d"], of_classes: Float[np.ndarray, "c d"]
) -> Int[np.ndarray, " m"]:
    """The class whose centroid has the largest cosine with each feature; NaN centroids are ignored."""
    present = np.flatnonzero(~np.isnan(of_classes).any(axis=1))
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(np.ascontiguousarray(of_classes[present], np.float32))
    return present[index.search(np.ascontiguousarray(features, np.float32), 1)[1][:, 0]]


def assignment_shares(
    labels: Int[np.ndarray, " m"], assigned: Int[np.ndarray, " m"], num_classes: int
) -> Float[np.ndarray, "c c"]:
    """Share of each class's images (row) assigned to each class (column); 0 for a class without images."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, assigned), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def swapped_classes(shares: Float[np.ndarray, "c c"]) -> dict[int, int]:
    """{class: class that most of its images look like}; empty if the best matching is the identity.

    The matching maximises the sum of shares; a tie favours the identity.
    """
    num_classes = len(shares)
    _, matched = linear_sum_assignment(shares + np.eye(num_classes) * 1e-9, maximize=True)
    return {
        c: int(d)
        for c, d in enumerate(matched)
        if c != d and shares[c, d] >= MAJORITY and shares[c, d] > shares[c, c]
    }


def _warnings(
    shares: np.ndarray, swapped: dict[int, int], order: ClassOrder, classes: Sequence[str]
) -> list[str]:
    if swapped:
        first = "; ".join(
            f"images of {classes[c]!r} look like {classes[d]!r} ({100 * shares[c, d]:.0f} %)"
            for c, d in list(swapped.items())[:5]
        )
        more = f"; and {len(swapped) - 5} more classes" if len(swapped) > 5 else ""
        remedy = "check that generator, extractor and folders number the classes alike"
        return [f"classes look swapped: {first}{more}; {remedy}"]
    if order["own_share"] < POOR * order["real_share"]:
        own, real = 100 * order["own_share"], 100 * order["real_share"]
        shares_text = f"{own:.0f} % of the images look like their own class, {real:.0f} % of real images do"
        return [f"{shares_text}; check the class map and the images"]
    return []
