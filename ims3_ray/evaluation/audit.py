"""Audit of image sets: shared images, one content under two labels, mixed-up classes. All results are JSON.

Exact duplicates have the same decoded pixels, which includes re-encoded copies; equal file bytes are found
first, without decoding. Near duplicates are as close in feature space as the closest percent of a class's
real images are to each other (`method.coverage.find_copies`). About one percent of unrelated images qualify
too, so a warning needs significantly more.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypedDict

import numpy as np
from jaxtyping import Float, Int, UInt8

from ims3_ray.display import escape_unprintable, first_few
from ims3_ray.errors import InputError
from ims3_ray.method.coverage import COPY_PERCENTILE, find_copies

from .label_order import ClassOrder, check_class_order

MIN_IMAGES = 100  # per class: one percent of fewer images is a single pair
MAX_PAIRS = 20  # listed per pair of sets; counts include all
SIGNIFICANCE = 0.001  # of the test for more near duplicates than chance gives
# {is a training set: (file names it should not hold, ImageNet split of these names, consequence)}
IMAGENET_MIXED = {
    True: (
        re.compile(r"(?:^|/)ILSVRC2012_val_\d{8}[^/]*$", re.IGNORECASE),
        "validation",
        "a test on ImageNet's validation images would not be clean",
    ),
    False: (
        re.compile(r"(?:^|/)(n\d{8})/(?:.*/)?\1_\d+\.jpe?g$", re.IGNORECASE),
        "training",
        "a generator or extractor that was trained on ImageNet has seen them",
    ),
}
Pairs = list[tuple[int, int]]
"""(row of the first set, row of the second set)."""


class Duplicates(TypedDict):
    """Images of the second set that are in the first too: count, set size, and some pairs of paths."""

    sets: list[str]
    count: int
    of: int
    pairs: list[list[str]]


class NearDuplicates(Duplicates):
    compared: int
    expected: float  # by chance


class LabelledImage(TypedDict):
    set: str
    path: str
    label: int


class Conflicts(TypedDict):
    count: int
    images: list[list[LabelledImage]]


class Audit(TypedDict):
    exact: list[Duplicates]
    near: list[NearDuplicates]
    conflicts: Conflicts
    classes: dict[str, ClassOrder]
    warnings: list[str]


@dataclass(frozen=True)
class AuditedImages:
    """N images of one set, in any order."""

    name: str  # in messages, such as "data.test"
    paths: Sequence[str]  # (N,) in messages
    labels: Int[np.ndarray, " n"]  # index into the classes that all sets share
    contents: Sequence[str]  # (N,) hash of the file's bytes
    pixels: Sequence[str] | None = None  # (N,) `pixel_hash`; None skips re-encoded copies
    features: Float[np.ndarray, "n d"] | None = None  # None skips near duplicates and class order


def pixel_hash(pixels: UInt8[np.ndarray, "..."]) -> str:
    """Hash of an image's decoded pixels and shape: the same for every lossless encoding."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def audit(sets: Sequence[AuditedImages], classes: Sequence[str]) -> Audit:
    """Run all checks on every pair of `sets`; `sets[0]` is the training set and defines the classes."""
    exact: list[Duplicates] = []
    near: list[NearDuplicates] = []
    warnings: list[str] = []
    for first, second in combinations(sets, 2):
        same = exact_duplicates(first, second)
        exact.append(_duplicates(first, second, same))
        if same:
            warnings.append(
                _duplicate_warning(exact[-1], len(second.labels), "also in {}, pixel for pixel", "=")
            )
        if first.features is not None and second.features is not None:
            pairs, compared = near_duplicates(first, second, excluded={row for _, row in same})
            expected = compared * COPY_PERCENTILE / 100
            near.append({**_duplicates(first, second, pairs), "compared": compared, "expected": expected})
            if _is_significant(near[-1]):
                text = f"near copies of images in {{}}; {expected:.1f} are expected by chance"
                warnings.append(_duplicate_warning(near[-1], compared, text, "≈"))
    conflicts = label_conflicts(sets)
    if conflicts:
        first_two = (
            f"{i['set']} {escape_unprintable(i['path'])} as {classes[i['label']]!r}" for i in conflicts[0][:2]
        )
        count = f"{len(conflicts)} images stand under more than one class"
        warnings.append(f"{count} (first: {' and '.join(first_two)}); keep the correct one of each")
    orders: dict[str, ClassOrder] = {}
    real, *others = sets
    for images in others:
        if real.features is not None and images.features is not None:
            orders[images.name], lines = check_class_order(
                real.features, real.labels, images.features, images.labels, classes
            )
            warnings += [f"{images.name}: {line}" for line in lines]
    listed: Conflicts = {"count": len(conflicts), "images": conflicts[:MAX_PAIRS]}
    return {"exact": exact, "near": near, "conflicts": listed, "classes": orders, "warnings": warnings}


def exact_duplicates(first: AuditedImages, second: AuditedImages) -> Pairs:
    """One pair for every image of `second` that `first` contains."""
    by_content, by_pixels = _first_rows(first.contents), _first_rows(first.pixels or ())
    pixels = second.pixels or [""] * len(second.contents)
    twins = (by_content.get(c, by_pixels.get(p)) for c, p in zip(second.contents, pixels, strict=True))
    return [(twin, row) for row, twin in enumerate(twins) if twin is not None]


def near_duplicates(first: AuditedImages, second: AuditedImages, excluded: set[int]) -> tuple[Pairs, int]:
    """Pairs of near duplicates within each class, and the number of compared rows of `second`.

    Skips the `excluded` rows of `second`, and classes with fewer than MIN_IMAGES images in `first`.
    """
    assert first.features is not None
    assert second.features is not None
    is_compared = np.array([row not in excluded for row in range(len(second.labels))], dtype=bool)
    pairs: Pairs = []
    compared = 0
    for label in np.unique(second.labels):
        ours = np.flatnonzero(first.labels == label)
        theirs = np.flatnonzero((second.labels == label) & is_compared)
        if len(ours) < MIN_IMAGES or len(theirs) == 0:
            continue
        compared += len(theirs)
        nearest, is_copy = find_copies(first.features[ours], second.features[theirs])
        pairs += list(zip(ours[nearest[is_copy]].tolist(), theirs[is_copy].tolist(), strict=True))
    return sorted(pairs, key=lambda pair: pair[1]), compared


def label_conflicts(sets: Sequence[AuditedImages]) -> list[list[LabelledImage]]:
    """One image per label for every content with several labels, within a set or across sets."""
    by_content: dict[str, dict[int, LabelledImage]] = defaultdict(dict)
    pixels_of: dict[str, str] = {}
    for images in sets:
        pixels_of |= zip(images.contents, images.pixels or (), strict=False)
    for images in sets:
        for path, label, content in zip(images.paths, images.labels.tolist(), images.contents, strict=True):
            image: LabelledImage = {"set": images.name, "path": path, "label": label}
            by_content[pixels_of.get(content, content)].setdefault(label, image)
    return [list(by_label.values()) for by_label in by_content.values() if len(by_label) > 1]


def imagenet_split_warnings(name: str, paths: Sequence[str], *, is_training: bool) -> list[str]:
    """Warn of file names that show mixed ImageNet splits, as in fast.ai's subsets.

    ImageNet's training images are `n02086240/n02086240_123.JPEG`, its validation images
    `ILSVRC2012_val_00000123.JPEG`. 95.9 % of fast.ai's imagewoof2 validation images are ImageNet training
    images, and its training split holds validation images.
    """
    pattern, split, risk = IMAGENET_MIXED[is_training]
    mixed = [path for path in paths if pattern.search(path)]
    if not mixed:
        return []
    return [
        f"{name}: {len(mixed)} of {len(paths)} images have names of ImageNet's {split} images (first: "
        f"{escape_unprintable(mixed[0])}), as in fast.ai's imagewoof2 and imagenette2: {risk}; "
        "take training and test images from ImageNet's own train and val"
    ]


def check_overlap(
    train: AuditedImages, scored: AuditedImages, *, limit: float, places: Mapping[str, str]
) -> list[str]:
    """Warn of scored files that are training files, byte for byte; `places` maps a set's name to its place.

    Raises InputError if their share exceeds `limit`.
    """
    same = exact_duplicates(train, scored)
    if not same:
        return []
    first = first_few(
        (
            f"{escape_unprintable(scored.paths[row])} = {escape_unprintable(train.paths[twin])}"
            for twin, row in same
        ),
        3,
        str,
    )
    ours, share = train.name, f"{len(same)} of {len(scored.labels)} images"
    if len(same) > limit * len(scored.labels):
        raise InputError(
            f"{scored.name}: {share} in {places[scored.name]} are also in {ours} {places[ours]} ({first}); "
            "give images that were not trained on, remove these, or raise data.max_overlap_fraction"
        )
    return [f"{scored.name}: {share} are also in {ours} ({first}); the accuracy counts them"]


def _first_rows(hashes: Sequence[str]) -> dict[str, int]:
    """{hash: its first row}."""
    return {value: row for row, value in reversed(list(enumerate(hashes)))}


def _duplicates(first: AuditedImages, second: AuditedImages, pairs: Pairs) -> Duplicates:
    paths = [[first.paths[a], second.paths[b]] for a, b in pairs[:MAX_PAIRS]]
    return {"sets": [first.name, second.name], "count": len(pairs), "of": len(second.labels), "pairs": paths}


def _duplicate_warning(found: Duplicates, of: int, text: str, sign: str) -> str:
    first, second = found["sets"]
    ours, theirs = map(escape_unprintable, found["pairs"][0])
    return f"{second}: {found['count']} of {of} images are {text.format(first)} ({theirs} {sign} {ours})"


def _is_significant(near: NearDuplicates) -> bool:
    """Whether the binomial distribution makes this many copies unlikely by chance."""
    from scipy import stats  # half a second to import

    return bool(near["count"] > stats.binom.isf(SIGNIFICANCE, near["compared"], COPY_PERCENTILE / 100))
