"""The audit: what two sets share, what bears two labels, which classes are mixed up."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ims3_ray.errors import InputError
from ims3_ray.evaluation.audit import (
    MAX_PAIRS,
    AuditedImages,
    audit,
    check_overlap,
    exact_duplicates,
    imagenet_split_warnings,
    label_conflicts,
    near_duplicates,
    pixel_hash,
)
from ims3_ray.evaluation.label_order import check_class_order, nearest_class, swapped_classes
from ims3_ray.method.coverage import find_copies

CLASSES = ["ant", "bee", "cat"]
CENTRES = np.eye(3, 8) * 4


def of(name, contents, labels=None, **known):
    labels = np.array([0] * len(contents) if labels is None else labels, np.int64)
    return AuditedImages(name, [f"{name}/{i}" for i in range(len(contents))], labels, contents, **known)


def clusters(per_class, seed):
    """Features around a centre a class, and their labels."""
    draws = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    return (CENTRES[labels] + draws.normal(size=(len(labels), 8))).astype(np.float32), labels


def featured(name, features, labels):
    return of(name, [f"{name}{i}" for i in range(len(labels))], labels, features=features)


def encoded(pixels, kind):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    with Image.open(io.BytesIO(sink.getvalue())) as image:
        return np.asarray(image.convert("RGB"))


def test_a_reencoded_copy_has_the_same_pixel_hash_and_another_pixel_another():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    assert pixel_hash(encoded(pixels, "PNG")) == pixel_hash(encoded(pixels, "BMP")) == pixel_hash(pixels)
    changed = pixels.copy()
    changed[0, 0, 0] ^= 1
    assert pixel_hash(changed) != pixel_hash(pixels)
    assert pixel_hash(pixels.reshape(7, 5, 3)) != pixel_hash(pixels)


def test_exact_duplicates_are_found_by_bytes_and_by_pixels_whatever_their_label():
    train = of("train", ["a", "b", "c"], [0, 0, 1], pixels=["A", "B", "C"])
    test = of("test", ["b", "x", "y"], [1, 0, 0], pixels=["B", "C", "Y"])
    assert exact_duplicates(train, test) == [(1, 0), (2, 1)]
    assert exact_duplicates(of("train", ["a", "b"]), of("test", ["x", "b"])) == [(1, 1)]  # without pixels


def test_near_duplicates_are_as_many_as_the_copy_rate():
    real, labels = clusters(150, seed=0)
    fresh, fresh_labels = clusters(40, seed=1)
    fresh[:10] = real[:10] + np.float32(1e-4)
    sets = featured("train", real, labels), featured("made", fresh, fresh_labels)
    pairs, compared = near_duplicates(*sets, set())
    assert compared == 120
    assert {(i, i) for i in range(10)} <= set(pairs)
    rates = [find_copies(real[labels == c], fresh[fresh_labels == c])[1].mean() for c in range(3)]
    assert len(pairs) == pytest.approx(40 * sum(rates))


def test_near_duplicates_leave_out_exact_ones_other_classes_and_small_ones():
    real, labels = clusters(120, seed=0)
    train = featured("train", real, labels)
    other_class = featured("made", real[:1], np.array([1]))
    assert near_duplicates(train, other_class, set()) == ([], 1)
    assert near_duplicates(train, featured("made", real[:2], labels[:2]), {0}) == ([(1, 1)], 1)
    small = featured("train", real[:60], labels[:60])
    assert near_duplicates(small, featured("made", real[:2], labels[:2]), set()) == ([], 0)


def test_chance_copies_give_no_warning_and_planted_ones_do():
    real, labels = clusters(200, seed=0)
    fresh, fresh_labels = clusters(100, seed=1)
    train = featured("train", real, labels)
    assert audit([train, featured("made", fresh, fresh_labels)], CLASSES)["warnings"] == []
    fresh[:20] = real[:20] + np.float32(1e-4)
    found = audit([train, featured("made", fresh, fresh_labels)], CLASSES)
    (warning,) = found["warnings"]
    assert "made/0 ≈ train/0" in warning


def test_one_content_under_two_labels_is_a_conflict_inside_a_set_and_across_sets():
    train = of("train", ["a", "b", "b2"], [0, 0, 1], pixels=["A", "B", "B"])
    test = of("test", ["a", "c"], [2, 1], pixels=["A", "C"])
    conflicts = label_conflicts([train, test])
    named = [[(i["path"], i["label"]) for i in bearers] for bearers in conflicts]
    assert named == [[("train/0", 0), ("test/0", 2)], [("train/1", 0), ("train/2", 1)]]
    assert "'cat'" in " ".join(audit([train, test], CLASSES)["warnings"])


def test_the_document_counts_all_pairs_shows_some_and_is_plain_data():
    contents = [str(i) for i in range(MAX_PAIRS + 7)]
    document = audit([of("train", contents), of("test", contents), of("made", ["x"])], CLASSES)
    counts = {tuple(e["sets"]): (e["count"], len(e["pairs"])) for e in document["exact"]}
    none = dict.fromkeys((("train", "made"), ("test", "made")), (0, 0))
    assert counts == {("train", "test"): (MAX_PAIRS + 7, MAX_PAIRS)} | none
    assert json.loads(json.dumps(document)) == document


def test_fast_ais_splits_are_told_by_their_file_names_and_imagenets_own_are_not():
    woof = [f"n02086240/n02086240_{i}.JPEG" for i in range(3)]
    val, other = ["n02086240/ILSVRC2012_val_00000907.JPEG"], ["n02086240/n01440764_1.JPEG", "dog/1.JPEG"]
    cases = ("test", False, "3 of 4", woof[0]), ("train", True, "1 of 4", val[0])
    for name, is_training, share, first in cases:
        (line,) = imagenet_split_warnings(f"data.{name}", woof + val, is_training=is_training)
        assert all(word in line for word in (f"data.{name}: {share}", first))
    for names, is_training in ((val, False), (woof, True), (other, False)):
        assert imagenet_split_warnings("data", names, is_training=is_training) == []


def test_more_shared_files_than_the_limit_are_refused_by_name_and_fewer_are_told():
    train, test = of("data.train", list("abcdef")), of("data.test", ["f", *map(str, range(9))])
    places = {"data.train": "/here", "data.test": "/there"}
    with pytest.raises(InputError, match=r"^data\.test: 1 of 10 .*/there .*test/0 = data\.train/5[^\n]*$"):
        check_overlap(train, test, limit=0.05, places=places)
    (line,) = check_overlap(train, test, limit=0.1, places=places)
    assert "data.test/0 = data.train/5" in line
    assert check_overlap(train, of("data.test", ["x"]), limit=0, places=places) == []


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [1, 2, 0]])
def test_permuted_classes_are_named_and_right_ones_are_not(order):
    real, labels = clusters(40, seed=0)
    made, looks = clusters(10, seed=1)
    claimed = np.argsort(order)[looks]  # an image of class c was drawn as order[c]
    found, warnings = check_class_order(real, labels, made, claimed, CLASSES)
    assert found["looks_like"] == {CLASSES[c]: CLASSES[d] for c, d in enumerate(order) if c != d}
    assert bool(warnings) == (order != [0, 1, 2])
    assert found["own_share"] == pytest.approx(np.mean([order[c] == c for c in range(3)]), abs=0.1)


def test_a_poor_set_is_warned_of_but_not_called_swapped():
    real, labels = clusters(40, seed=0)
    made, looks = clusters(10, seed=1)
    claimed = np.repeat([0, 1, 2], [3, 3, 4])
    found, warnings = check_class_order(real, labels, made[looks == 0], claimed, CLASSES)
    assert found["looks_like"] == {}
    assert "own class" in warnings[0]


def test_a_class_without_real_images_is_nearest_to_nothing_and_ties_keep_the_identity():
    of_classes = np.array([[1.0, 0], [np.nan, np.nan], [0, 1.0]])
    assert nearest_class(np.array([[1, 0.1], [0.1, 1]], np.float32), of_classes).tolist() == [0, 2]
    assert swapped_classes(np.full((3, 3), 1 / 3)) == {}
    assert swapped_classes(np.array([[0.3, 0.4, 0.3], [0.4, 0.3, 0.3], [0.3, 0.3, 0.4]])) == {}  # no majority
    assert swapped_classes(np.array([[0.5, 0.5], [0.5, 0.5]])) == {}
