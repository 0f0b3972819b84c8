"""Coverage metrics against their definitions, written out in plain numpy loops over exactly representable
numbers.
"""

import faiss
import numpy as np
import pytest

from ims3_ray.method.coverage import (
    class_coverage,
    find_copies,
    is_covered,
    kid,
    neighbour_distances,
    sparsest_rows,
    vendi,
)

K = 3


def _grid(rows: int, seed: int, size: int = 6) -> np.ndarray:
    """Small whole numbers: many ties, and distances that float32 holds without rounding."""
    return np.random.default_rng(seed).integers(0, size, (rows, 3)).astype(np.float32)


def _distance2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array(
        [[sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) for v in b] for u in a.astype(float)]
    )


def _nnd2(x: np.ndarray, k: int) -> np.ndarray:
    return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(_distance2(x, x))])


@pytest.mark.parametrize("seed", range(5))
def test_metrics_match_their_definitions_with_ties_and_duplicates(seed):
    x, y = _grid(25, seed), _grid(7, seed + 100)
    d, nnd = _distance2(x, y), _nnd2(x, K)
    found = class_coverage(x, np.zeros(25, int), y, np.zeros(7, int), k=K).per_class[0]
    hit = [any(d[i, j] <= nnd[i] for j in range(7)) for i in range(25)]
    sparse = sorted(range(25), key=lambda i: (-nnd[i], i))[:5]
    assert found["coverage"] == pytest.approx(np.mean(hit))
    assert found["low_density_coverage"] == pytest.approx(np.mean([hit[i] for i in sparse]))
    assert found["density"] == pytest.approx(
        sum(d[i, j] <= nnd[i] for i in range(25) for j in range(7)) / (K * 7)
    )
    assert found["precision"] == pytest.approx(
        np.mean([any(d[i, j] <= nnd[i] for i in range(25)) for j in range(7)])
    )
    nnd_y = _nnd2(y, K)
    assert found["recall"] == pytest.approx(
        np.mean([any(d[i, j] <= nnd_y[j] for j in range(7)) for i in range(25)])
    )


def test_neighbour_distance_leaves_the_image_itself_out_but_not_its_duplicates():
    x = np.array([[0.0], [1.0], [3.0], [3.0]], np.float32)
    assert neighbour_distances(x, 1).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert neighbour_distances(x, 2).tolist() == [3.0, 2.0, 2.0, 2.0]


def test_a_class_covers_itself_and_the_ball_has_its_surface():
    x = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    assert is_covered(x, x).all()
    line = np.arange(8, dtype=np.float32)[:, None]
    # |1 - 0| = NND_2(1) is on the surface
    assert is_covered(line, line[:1], k=2).tolist() == [True] * 2 + [False] * 6
    assert is_covered(line, np.array([[-2.0]], np.float32), k=2).tolist() == [True] + [False] * 7


def test_low_density_coverage_sees_what_coverage_hides():
    crowd, outskirts = np.zeros((40, 2), np.float32), np.zeros((10, 2), np.float32)
    crowd[:, 0] = np.arange(40) / 100
    outskirts[:, 1] = 10 * np.arange(1, 11)
    x, labels = np.concatenate([crowd, outskirts]), np.zeros(50, int)
    found = class_coverage(x, labels, crowd, np.zeros(40, int), k=5).per_class[0]
    assert found["coverage"] >= 0.8
    assert found["low_density_coverage"] < 0.6
    assert sorted(sparsest_rows(neighbour_distances(x))) == list(range(40, 50))


def test_classes_are_kept_apart_and_weigh_the_same():
    x = np.concatenate([_grid(20, 1), _grid(8, 2) + 100])
    labels = np.array([4] * 20 + [7] * 8)
    # class 7 gets class 4's images
    y, y_labels = np.concatenate([x[:20], x[:8]]), np.array([4] * 20 + [7] * 8)
    found = class_coverage(x, labels, y, y_labels, k=K)
    assert found.per_class[4]["coverage"] == 1.0
    assert found.per_class[7]["coverage"] == 0.0
    assert found.mean["coverage"] == 0.5
    order = np.random.default_rng(0).permutation(28)
    shuffled = class_coverage(x[order], labels[order], y, y_labels, k=K)
    assert shuffled.mean["coverage"] == 0.5
    assert shuffled.mean["density"] == found.mean["density"]


def test_recall_is_none_where_a_class_has_too_few_synthetic_images():
    x, labels = _grid(20, 3), np.repeat([0, 1], 10)
    y, y_labels = _grid(6, 4), np.array([0, 0, 0, 0, 1, 1])
    found = class_coverage(x, labels, y, y_labels, k=K)
    assert found.per_class[0]["recall"] is not None
    assert found.per_class[1]["recall"] is None
    assert found.mean["recall"] is None
    assert found.mean["coverage"] is not None


def test_impossible_sets_are_refused_by_class():
    x, labels = _grid(12, 5), np.repeat([0, 1], 6)
    with pytest.raises(ValueError, match="class 0: 6 real images; k = 6 neighbours need at least 7"):
        class_coverage(x, labels, x, labels, k=6)
    with pytest.raises(ValueError, match="class 1: no synthetic image, but 6 real ones"):
        class_coverage(x, labels, x[:6], labels[:6], k=3)


def test_distances_do_not_round_far_from_the_origin_and_faiss_is_left_as_it_was(monkeypatch):
    # queries from which faiss takes its shortcut
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 17)
    x = np.random.default_rng(1).normal(size=(60, 64)).astype(np.float32) + 100
    assert np.allclose(neighbour_distances(x, 3) ** 2, _nnd2(x, 3), rtol=1e-5)
    assert is_covered(np.concatenate([x[:30], x[:30]]), x[:30], k=1).all()  # every ball has radius 0
    assert faiss.cvar.distance_compute_blas_threshold == 17


def test_copies_are_told_from_new_images():
    rng = np.random.default_rng(2)
    x, new = (rng.normal(size=(200, 32)).astype(np.float32) for _ in range(2))
    near = x[:10] + 1e-3
    assert find_copies(x, near)[1].all()
    assert find_copies(x, np.concatenate([near, new[:30]]))[1].mean() == pytest.approx(0.25, abs=0.05)


def test_vendi_counts_distinct_directions():
    axes = np.eye(6, dtype=np.float32)
    assert vendi(axes[:4]) == pytest.approx(4)
    assert vendi(np.repeat(axes[:1], 5, axis=0)) == pytest.approx(1)
    # 10 rows, 6 columns; length is ignored
    assert vendi(np.repeat(3 * axes[:2], 5, axis=0)) == pytest.approx(2)


def test_kid_is_unbiased_around_zero_for_one_distribution_and_positive_for_two():
    rng = np.random.default_rng(3)
    same = [kid(rng.normal(size=(40, 4)), rng.normal(size=(30, 4))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 200**0.5
    assert kid(rng.normal(size=(40, 4)), rng.normal(size=(30, 4)) + 2) > 5 * np.std(same)
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    assert kid(x, y) == pytest.approx((1 * 2 + 1) ** 3 + 1 - 2 * (1 + 4**3 + 1 + 7**3) / 4)


def test_kid_of_features_of_length_1_sees_more_than_their_means():
    rng = np.random.default_rng(4)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 12, 24)))
    labels = np.zeros(12, int)

    def mean(a, b):
        pairs = [(u, v) for i, u in enumerate(a) for j, v in enumerate(b) if a is not b or i != j]
        return np.mean([(u @ v + 1) ** 3 for u, v in pairs])

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    assert class_coverage(x, labels, y, labels).mean["kid"] == pytest.approx(expected, rel=1e-4)


def test_a_copy_is_within_the_first_percentile_of_real_to_real_distances():
    # neighbours 2, 2, 3, 4 … apart: the percentile is 3
    x = np.cumsum(np.arange(1, 202, dtype=np.float32))[:, None]
    y = np.array([[x[-1, 0] + 2], [x[-1, 0] + 4], [x[50, 0] - 3]], np.float32)
    rows, is_copy = find_copies(x, y)
    assert rows.tolist() == [200, 200, 50]
    assert is_copy.tolist() == [True, False, True]
