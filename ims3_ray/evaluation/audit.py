"""What may make an accuracy untrue: shared images, one content under two labels, mixed-up classes.

Exact duplicates have the same decoded pixels, so that a re-encoded copy counts; files of the same bytes are
found first, for that needs no decoding. Near duplicates are as near in feature space as the nearest percent
of real images of the class are to each other (`method.coverage.copies`), so about one percent of unrelated
images count too: a warning needs more. All results are plain data.
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

from .label_order import ClassOrder, audit_classes

LEAST_IMAGES = 100  # of a class, for a percent of them to be more than one
SHOWN = 20  # pairs of a document; the counts are of all
SIGNIFICANCE = 0.001  # that so many near duplicates come about by chance
# by whether it is a training set: names that it should not hold, whose they are, and what they spoil
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


class Duplicates(TypedDict):
    """Images of the second set that the first has too: their number, of how many, and some pairs of paths."""

    sets: list[str]
    count: int
    of: int
    pairs: list[list[str]]


class NearDuplicates(Duplicates):
    compared: int
    expected: float  # by chance


class Bearer(TypedDict):
    """An image whose content bears another label elsewhere."""

    set: str
    path: str
    label: int


class Conflicts(TypedDict):
    count: int
    images: list[list[Bearer]]


class Audit(TypedDict):
    exact: list[Duplicates]
    near: list[NearDuplicates]
    conflicts: Conflicts
    classes: dict[str, ClassOrder]
    warnings: list[str]


@dataclass(frozen=True)
class AuditedImages:
    """One set as the audit sees it: N images in any order."""

    name: str  # what messages call it, such as "data.test"
    paths: Sequence[str]  # (N,) what messages call an image
    labels: Int[np.ndarray, " n"]  # index into the classes that all sets share
    contents: Sequence[str]  # (N,) hash of the file's bytes
    pixels: Sequence[str] | None = None  # (N,) `pixel_hash`; None leaves re-encoded copies undetected
    # None leaves near duplicates and mixed-up classes undetected
    features: Float[np.ndarray, "n d"] | None = None

    def __post_init__(self) -> None:
        for field in ("paths", "contents", "pixels", "features"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.labels):
                raise ValueError(f"{self.name}: {len(values)} {field}, but {len(self.labels)} labels")


def pixel_hash(pixels: UInt8[np.ndarray, "..."]) -> str:
    """Hash of an image's decoded pixels, shape included: the same for all its lossless encodings."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def audit(sets: Sequence[AuditedImages], classes: Sequence[str]) -> Audit:
    """All checks between `sets`, the first of which is the training set, by which classes are known.

    Of every pair of sets: how many images of the second are also in the first, with up to SHOWN pairs.
    """
    exact: list[Duplicates] = []
    near: list[NearDuplicates] = []
    warnings: list[str] = []
    for first, second in combinations(sets, 2):
        same = exact_duplicates(first, second)
        exact.append(_duplicates(first, second, same))
        warnings += _warn_of_exact(exact[-1])
        if first.features is not None and second.features is not None:
            alike, compared = near_duplicates(first, second, without={row for _, row in same})
            expected = compared * COPY_PERCENTILE / 100
            near.append({**_duplicates(first, second, alike), "compared": compared, "expected": expected})
            warnings += _warn_of_near(near[-1])
    conflicts = label_conflicts(sets)
    warnings += _warn_of_conflicts(conflicts, classes)
    orders: dict[str, ClassOrder] = {}
    real, *others = sets
    for images in others:
        if real.features is not None and images.features is not None:
            orders[images.name], sentences = audit_classes(
                real.features, real.labels, images.features, images.labels, classes
            )
            warnings += [f"{images.name}: {sentence}" for sentence in sentences]
    of_conflicts: Conflicts = {"count": len(conflicts), "images": conflicts[:SHOWN]}
    return {"exact": exact, "near": near, "conflicts": of_conflicts, "classes": orders, "warnings": warnings}


def exact_duplicates(first: AuditedImages, second: AuditedImages) -> Pairs:
    """(row of the first, row of the second) for every image of the second that the first holds."""
    by_content, by_pixels = _first_rows(first.contents), _first_rows(first.pixels or ())
    pixels = second.pixels or [""] * len(second.contents)
    twins = (by_content.get(c, by_pixels.get(p)) for c, p in zip(second.contents, pixels, strict=True))
    return [(twin, row) for row, twin in enumerate(twins) if twin is not None]


def near_duplicates(first: AuditedImages, second: AuditedImages, without: set[int]) -> tuple[Pairs, int]:
    """(row of the first, row of the second) inside each class, and how many rows of the second were compared.

    Left out are the rows `without` of the second, and classes with so few images in the first that the
    nearest percent of their distances is one pair: nearness by chance would be more frequent than a percent.
    """
    assert first.features is not None
    assert second.features is not None
    rest = np.array([row not in without for row in range(len(second.labels))], dtype=bool)
    pairs: Pairs = []
    compared = 0
    for label in np.unique(second.labels):
        ours, theirs = np.flatnonzero(first.labels == label), np.flatnonzero((second.labels == label) & rest)
        if len(ours) < LEAST_IMAGES or len(theirs) == 0:
            continue
        compared += len(theirs)
        nearest, is_copy = find_copies(first.features[ours], second.features[theirs])
        pairs += list(zip(ours[nearest[is_copy]].tolist(), theirs[is_copy].tolist(), strict=True))
    return sorted(pairs, key=lambda pair: pair[1]), compared


def label_conflicts(sets: Sequence[AuditedImages]) -> list[list[Bearer]]:
    """For every content that bears several labels, in a set or across them: one image of each label."""
    bearers: dict[str, dict[int, Bearer]] = defaultdict(dict)
    pixels_of: dict[str, str] = {}
    for images in sets:
        pixels_of |= zip(images.contents, images.pixels or (), strict=False)
    for images in sets:
        for path, label, content in zip(images.paths, images.labels.tolist(), images.contents, strict=True):
            bearer: Bearer = {"set": images.name, "path": path, "label": label}
            bearers[pixels_of.get(content, content)].setdefault(label, bearer)
    return [list(by_label.values()) for by_label in bearers.values() if len(by_label) > 1]


def imagenet_split_warnings(name: str, paths: Sequence[str], *, is_training: bool) -> list[str]:
    """Sentences on a set whose file names show that it mixes ImageNet's splits, as fast.ai's subsets do.

    ImageNet's training images are `n02086240/n02086240_123.JPEG`, its validation images
    `ILSVRC2012_val_00000123.JPEG`. Of fast.ai's imagewoof2 validation images 95.9 % are training images of
    ImageNet, and its training split holds validation images.
    """
    pattern, whose, risk = IMAGENET_MIXED[is_training]
    odd = [path for path in paths if pattern.search(path)]
    if not odd:
        return []
    return [
        f"{name}: {len(odd)} of {len(paths)} images are named as ImageNet's {whose} images are (first: "
        f"{escape_unprintable(odd[0])}), as in fast.ai's imagewoof2 and imagenette2: {risk}; "
        "take training and test images from ImageNet's own train and val"
    ]


def refuse_overlap(
    train: AuditedImages, scored: AuditedImages, *, limit: float, places: Mapping[str, str]
) -> list[str]:
    """InputError where more than the share `limit` of the scored images are training files, byte for byte.

    `places` says where each set lies. Up to the limit, gives a sentence that names the files; nothing where
    there are none.
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
    ours, of = train.name, f"{len(same)} of {len(scored.labels)} images"
    if len(same) > limit * len(scored.labels):
        raise InputError(
            f"{scored.name}: {of} in {places[scored.name]} are also in {ours} {places[ours]} ({first}); give "
            "images that were not trained on, remove these, or raise data.max_overlap_fraction"
        )
    return [f"{scored.name}: {of} are also in {ours} ({first}); the accuracy counts them"]


def _first_rows(hashes: Sequence[str]) -> dict[str, int]:
    """Each hash's first row."""
    return {value: row for row, value in reversed(list(enumerate(hashes)))}


def _duplicates(first: AuditedImages, second: AuditedImages, pairs: Pairs) -> Duplicates:
    paths = [[first.paths[a], second.paths[b]] for a, b in pairs[:SHOWN]]
    return {"sets": [first.name, second.name], "count": len(pairs), "of": len(second.labels), "pairs": paths}


def _warn_of_exact(same: Duplicates) -> list[str]:
    if not same["count"]:
        return []
    first, second = same["sets"]
    ours, theirs = map(escape_unprintable, same["pairs"][0])
    count = f"{same['count']} of {same['of']} images"
    return [f"{second}: {count} are also in {first}, pixel for pixel ({theirs} = {ours})"]


def _warn_of_near(alike: NearDuplicates) -> list[str]:
    """A sentence where more images are copies than chance would have, by the binomial distribution."""
    from scipy import stats  # half a second to import

    if alike["count"] <= stats.binom.isf(SIGNIFICANCE, alike["compared"], COPY_PERCENTILE / 100):
        return []
    first, second = alike["sets"]
    ours, theirs = map(escape_unprintable, alike["pairs"][0])
    count = f"{alike['count']} of {alike['compared']} images"
    chance = f"{alike['expected']:.1f} would be by chance ({theirs} ≈ {ours})"
    return [f"{second}: {count} are near copies of images in {first}, where {chance}"]


def _warn_of_conflicts(conflicts: list[list[Bearer]], classes: Sequence[str]) -> list[str]:
    if not conflicts:
        return []
    first = " and ".join(
        f"{i['set']} {escape_unprintable(i['path'])} as {classes[i['label']]!r}" for i in conflicts[0][:2]
    )
    count = f"{len(conflicts)} images stand under more than one class"
    return [f"{count} (first: {first}); keep the right one of each"]
