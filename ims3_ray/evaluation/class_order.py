"""Whether a set's classes are the classes that their labels say: generator, extractor and folders may count
differently.

Every image is assigned to the class that it looks like, by the nearest real centroid or by a classifier's
head. A set that was drawn with permuted labels is told from a poor one by the matching of its classes to the
real ones that most of its images agree with (Kuhn's assignment): in a poor set that is still the identity.
"""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

MAJORITY = 0.5  # share of a class's images that must look like another class before it counts as swapped
# of the share that real images have: a set with fewer images that look like their own class is warned of
POOR = 0.5


def audit_classes(
    real: Float[np.ndarray, "n d"],
    real_labels: Int[np.ndarray, " n"],
    other: Float[np.ndarray, "m d"],
    labels: Int[np.ndarray, " m"],
    classes: Sequence[str],
    head: Float[np.ndarray, "m c"] | None = None,
) -> dict[str, Any]:
    """{"by", "own_share", "real_share", "per_class": {class: share}, "looks_like": {class: class},
    "warnings": […]} of a set.

    `own_share` of the images look like their own class, and `real_share` of the real ones by their nearest
    centroid.

    `labels` index `classes` in both sets. Images are assigned by `head`, a classifier's scores for these
    classes in their order, where it is given, else by the nearest centroid. Classes without an image are left
    out.
    """
    of_classes = centroids(real, real_labels, len(classes))
    assigned = nearest_class(other, of_classes) if head is None else head.argmax(axis=1)
    shares = assignment_shares(labels, assigned, len(classes))
    swapped = swapped_classes(shares)
    own, of_real = (
        float((a == b).mean())
        for a, b in ((assigned, labels), (nearest_class(real, of_classes), real_labels))
    )
    return {
        "by": "centroid" if head is None else "head",
        "own_share": own,
        "real_share": of_real,
        "per_class": {classes[c]: float(shares[c, c]) for c in np.unique(labels)},
        "looks_like": {classes[c]: classes[d] for c, d in swapped.items()},
        "warnings": _sentences(shares, swapped, own, of_real, classes),
    }


def centroids(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], num_classes: int
) -> Float[np.ndarray, "c d"]:
    """Each class's mean feature, of length 1; NaN for a class without an image."""
    made = np.full((num_classes, features.shape[1]), np.nan)
    for label in np.unique(labels):
        mean = features[labels == label].mean(axis=0, dtype=np.float64)
        made[label] = mean / max(np.linalg.norm(mean), 1e-12)
    return made


def nearest_class(
    features: Float[np.ndarray, "m d"], of_classes: Float[np.ndarray, "c d"]
) -> Int[np.ndarray, " m"]:
    """The class whose centroid has the greatest cosine similarity to each feature; classes of NaN are nearest
    to none.
    """
    present = np.flatnonzero(~np.isnan(of_classes).any(axis=1))
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(np.ascontiguousarray(of_classes[present], np.float32))
    return present[index.search(np.ascontiguousarray(features, np.float32), 1)[1][:, 0]]


def assignment_shares(
    labels: Int[np.ndarray, " m"], assigned: Int[np.ndarray, " m"], num_classes: int
) -> Float[np.ndarray, "c c"]:
    """Share of the images of each class (row) that look like each class (column); rows of classes without
    images are 0.
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, assigned), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def swapped_classes(shares: Float[np.ndarray, "c c"]) -> dict[int, int]:
    """{class: the class that most of its images look like} where the best one-to-one matching is not the
    identity.

    The matching maximises the summed shares, on a tie with the most classes left where they are.
    """
    num_classes = len(shares)
    _, matched = linear_sum_assignment(shares + np.eye(num_classes) * 1e-9, maximize=True)
    return {
        c: int(d)
        for c, d in enumerate(matched)
        if c != d and shares[c, d] >= MAJORITY and shares[c, d] > shares[c, c]
    }


def _sentences(
    shares: np.ndarray, swapped: dict[int, int], own: float, of_real: float, classes: Sequence[str]
) -> list[str]:
    if swapped:
        first = [
            f"images of {classes[c]!r} look like {classes[d]!r} ({100 * shares[c, d]:.0f} %)"
            for c, d in swapped.items()
        ]
        more = f"; and {len(swapped) - 5} more classes" if len(swapped) > 5 else ""
        return [
            f"classes look swapped: {'; '.join(first[:5])}{more}; check that generator, extractor and folders count alike"
        ]
    if own < POOR * of_real:
        return [
            f"{100 * own:.0f} % of the images look like their own class, of real images {100 * of_real:.0f} %; "
            "check the class map, or the images"
        ]
    return []
