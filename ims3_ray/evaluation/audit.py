"""What may make an accuracy untrue: images that two sets share, one content under two labels, classes mixed
up.

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
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import stats

from ims3_ray.errors import InputError
from ims3_ray.method.coverage import COPY_PERCENTILE, copies
from ims3_ray.text import named, some

from .class_order import audit_classes

LEAST_IMAGES = 100  # of a class, for a percent of them to be more than one
SHOWN = 20  # pairs of a document; the counts are of all
SIGNIFICANCE = 0.001  # that so many near duplicates come about by chance
IMAGENET_TRAINING_FILE = re.compile(r"(?:^|/)(n\d{8})/(?:.*/)?\1_\d+\.jpe?g$", re.IGNORECASE)
IMAGENET_VALIDATION_FILE = re.compile(r"(?:^|/)ILSVRC2012_val_\d{8}[^/]*$", re.IGNORECASE)
Pairs = list[tuple[int, int]]


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
    """Hash of an image's decoded pixels, its shape included: the same for every lossless encoding of one
    image.
    """
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


def audit(
    sets: Sequence[AuditedImages],
    classes: Sequence[str],
    *,
    expected_copies: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """All checks between `sets`, of which the first is the training set and the real one that classes are
    known by.

    Gives {"exact": […], "near": […], "conflicts": {…}, "classes": {set: …}, "warnings": [sentences]}: of
    every pair of sets how many images of the second have a duplicate in the first, with up to SHOWN pairs of
    paths. Pairs of names in `expected_copies` give no warning: a coreset is made of training images.
    """
    exact, near, warnings = [], [], []
    for first, second in combinations(sets, 2):
        quiet = (first.name, second.name) in expected_copies
        same = exact_duplicates(first, second)
        exact.append(_described(first, second, same))
        warnings += [] if quiet else _warn_of_exact(first, second, exact[-1])
        if first.features is not None and second.features is not None:
            alike, compared = near_duplicates(first, second, without={row for _, row in same})
            near.append(
                _described(first, second, alike)
                | {"compared": compared, "expected": compared * COPY_PERCENTILE / 100}
            )
            warnings += [] if quiet else _warn_of_near(first, second, near[-1])
    conflicts = label_conflicts(sets)
    warnings += _warn_of_conflicts(conflicts, classes)
    ordered, of_classes = _audit_orders(sets, classes)
    return {
        "exact": exact,
        "near": near,
        "conflicts": {"count": len(conflicts), "images": conflicts[:SHOWN]},
        "classes": ordered,
        "warnings": warnings + of_classes,
    }


def exact_duplicates(first: AuditedImages, second: AuditedImages) -> Pairs:
    """(row of the first, row of the second) for every image of the second that the first holds, whatever its
    label.
    """
    by_content = _first_rows(first.contents)
    by_pixels = _first_rows(first.pixels) if first.pixels is not None and second.pixels is not None else {}
    found = []
    for row, content in enumerate(second.contents):
        twin = by_content.get(content)
        if twin is None and by_pixels:
            twin = by_pixels.get(second.pixels[row])
        if twin is not None:
            found.append((twin, row))
    return found


def near_duplicates(
    first: AuditedImages, second: AuditedImages, without: set[int] | None = None
) -> tuple[Pairs, int]:
    """(row of the first, row of the second) inside each class, and how many rows of the second were compared.

    Left out are the rows `without` of the second, and classes with so few images in the first that the
    nearest percent of their distances is one pair: nearness by chance would be more frequent than a percent.
    """
    rest = np.array([row not in (without or ()) for row in range(len(second.labels))], dtype=bool)
    found, compared = [], 0
    for label in np.unique(second.labels):
        ours, theirs = np.flatnonzero(first.labels == label), np.flatnonzero((second.labels == label) & rest)
        if len(ours) < LEAST_IMAGES or len(theirs) == 0:
            continue
        compared += len(theirs)
        nearest, is_copy = copies(first.features[ours], second.features[theirs])
        found += list(zip(ours[nearest[is_copy]].tolist(), theirs[is_copy].tolist(), strict=True))
    return sorted(found, key=lambda pair: pair[1]), compared


def label_conflicts(sets: Sequence[AuditedImages]) -> list[list[dict[str, Any]]]:
    """For every content that bears two labels or more, inside a set or across them: one image of each label."""
    bearers: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    pixels_of = {
        c: p
        for images in sets
        if images.pixels is not None
        for c, p in zip(images.contents, images.pixels, strict=True)
    }
    for images in sets:
        for path, label, content in zip(images.paths, images.labels.tolist(), images.contents, strict=True):
            known = {"set": images.name, "path": path, "label": label}
            bearers[pixels_of.get(content, content)].setdefault(label, known)
    return [list(by_label.values()) for by_label in bearers.values() if len(by_label) > 1]


def imagenet_split_warnings(name: str, paths: Sequence[str], *, is_training: bool) -> list[str]:
    """Sentences on a set whose file names show that it mixes ImageNet's splits, as fast.ai's subsets do.

    ImageNet's training images are `n02086240/n02086240_123.JPEG`, its validation images
    `ILSVRC2012_val_00000123.JPEG`. Of fast.ai's imagewoof2 validation images 95.9 % are training images of
    ImageNet, and its training split holds validation images.
    """
    pattern = IMAGENET_VALIDATION_FILE if is_training else IMAGENET_TRAINING_FILE
    odd = [path for path in paths if pattern.search(path)]
    if not odd:
        return []
    whose, risk = (
        ("validation", "a test on ImageNet's validation images would not be clean")
        if is_training
        else ("training", "a generator or extractor that was trained on ImageNet has seen them")
    )
    return [
        f"{name}: {len(odd)} of {len(paths)} images are named as ImageNet's {whose} images are (first: {named(odd[0])}), as in "
        f"fast.ai's imagewoof2 and imagenette2: {risk}; take training and test images from ImageNet's own train and val"
    ]


def refuse_overlap(
    train: AuditedImages, scored: AuditedImages, *, limit: float, places: Mapping[str, str]
) -> list[str]:
    """InputError where more than `limit` (a share) of the scored images are files of the training set, byte
    for byte.

    `places` says where each set lies. Up to the limit, gives a sentence that names the files; nothing where
    there are none.
    """
    same = exact_duplicates(train, scored)
    if not same:
        return []
    pairs = [f"{named(scored.paths[row])} = {named(train.paths[twin])}" for twin, row in same]
    first = some(pairs, 3, str)
    of = f"{len(same)} of {len(scored.labels)} images"
    if len(same) > limit * len(scored.labels):
        raise InputError(
            f"{scored.name}: {of} in {places[scored.name]} are also in {train.name} {places[train.name]} ({first}); "
            "give images that were not trained on, remove these, or raise data.max_overlap_fraction"
        )
    return [f"{scored.name}: {of} are also in {train.name} ({first}); the accuracy counts them"]


def _first_rows(hashes: Sequence[str]) -> dict[str, int]:
    """Each hash's first row."""
    return {value: row for row, value in reversed(list(enumerate(hashes)))}


def _described(first: AuditedImages, second: AuditedImages, pairs: Pairs) -> dict[str, Any]:
    shown = [[first.paths[a], second.paths[b]] for a, b in pairs[:SHOWN]]
    return {"sets": [first.name, second.name], "count": len(pairs), "of": len(second.labels), "pairs": shown}


def _warn_of_exact(first: AuditedImages, second: AuditedImages, found: Mapping[str, Any]) -> list[str]:
    if not found["count"]:
        return []
    ours, theirs = map(named, found["pairs"][0])
    return [
        f"{second.name}: {found['count']} of {found['of']} images are also in {first.name}, pixel for pixel ({theirs} = {ours})"
    ]


def _warn_of_near(first: AuditedImages, second: AuditedImages, found: Mapping[str, Any]) -> list[str]:
    """A sentence where more images are copies than chance would have, by the binomial distribution."""
    most = stats.binom.isf(SIGNIFICANCE, found["compared"], COPY_PERCENTILE / 100)
    if found["count"] <= most:
        return []
    ours, theirs = map(named, found["pairs"][0])
    return [
        f"{second.name}: {found['count']} of {found['compared']} images are near copies of images in {first.name}, where "
        f"{found['expected']:.1f} would be by chance ({theirs} ≈ {ours})"
    ]


def _warn_of_conflicts(conflicts: list[list[dict[str, Any]]], classes: Sequence[str]) -> list[str]:
    if not conflicts:
        return []
    bearers = " and ".join(
        f"{i['set']} {named(i['path'])} as {classes[i['label']]!r}" for i in conflicts[0][:2]
    )
    return [
        f"{len(conflicts)} images stand under more than one class (first: {bearers}); keep the right one of each"
    ]


def _audit_orders(sets: Sequence[AuditedImages], classes: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    real, *others = sets
    found, warnings = {}, []
    for images in others:
        if real.features is not None and images.features is not None:
            found[images.name] = audit_classes(
                real.features, real.labels, images.features, images.labels, classes
            )
            warnings += [f"{images.name}: {sentence}" for sentence in found[images.name].pop("warnings")]
    return found, warnings
