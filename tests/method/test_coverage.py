"""Coverage metrics against their definitions, in plain loops over exactly representable numbers."""

import faiss
import numpy as np
import pytest

from ims3_ray.method.coverage import (
    RealClass,
    became_copies,
    class_mean,
    class_metrics,
    deciles,
    find_copies,
    inside_balls,
    is_covered,
    kid,
    neighbour_distances,
    sparsest_rows,
    vendi,
)

K = 3


def _grid(rows: int, seed: int, size: int = 6) -> np.ndarray:
    """Small whole numbers: many ties, and distances without rounding in float32."""
    return np.random.default_rng(seed).integers(0, size, (rows, 3)).astype(np.float32)


def _normal(rows: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def _metrics(x: np.ndarray, y: np.ndarray, k: int = K):
    return class_metrics(RealClass(x, k), y)


def _distance2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[sum((u - v) ** 2) for v in b] for u in a.astype(float)])


def _nnd2(x: np.ndarray, k: int) -> np.ndarray:
    return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(_distance2(x, x))])


@pytest.mark.parametrize("seed", range(5))
def test_metrics_match_their_definitions_with_ties_and_duplicates(seed):
    x, y = _grid(25, seed), _grid(7, seed + 100)
    d, nnd, nnd_y = _distance2(x, y), _nnd2(x, K), _nnd2(y, K)
    inside = d <= nnd[:, None]
    sparse = sorted(range(25), key=lambda i: (-nnd[i], i))[:5]
    expected = {
        "coverage": inside.any(axis=1).mean(),
        "low_density_coverage": inside.any(axis=1)[sparse].mean(),
        "density": inside.sum() / (K * 7),
        "precision": inside.any(axis=0).mean(),
        "recall": (d <= nnd_y).any(axis=1).mean(),
    }
    metrics = _metrics(x, y)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_neighbour_distance_excludes_the_image_itself_but_not_its_duplicates():
    x = np.array([[0.0], [1.0], [3.0], [3.0]], np.float32)
    assert neighbour_distances(x, 1).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert neighbour_distances(x, 2).tolist() == [3.0, 2.0, 2.0, 2.0]


def test_a_class_covers_itself_and_the_surface_belongs_to_the_ball():
    x = _normal(40, 16, 0)
    assert is_covered(x, x).all()
    line = np.arange(8, dtype=np.float32)[:, None]
    assert is_covered(line, line[:1], k=2).tolist() == [True] * 2 + [False] * 6  # |1 - 0| = NND_2(1)
    assert is_covered(line, np.array([[-2.0]], np.float32), k=2).tolist() == [True] + [False] * 7


def test_low_density_coverage_sees_what_coverage_hides():
    crowd = np.stack([np.arange(40) / 100, np.zeros(40)], axis=1).astype(np.float32)
    outskirts = np.stack([np.zeros(10), np.arange(10, 101, 10)], axis=1).astype(np.float32)
    x = np.concatenate([crowd, outskirts])
    metrics = _metrics(x, crowd, k=5)
    assert metrics["coverage"] >= 0.8
    assert metrics["low_density_coverage"] < 0.6
    assert sorted(sparsest_rows(neighbour_distances(x))) == list(range(40, 50))


def test_class_mean_weighs_classes_equally_and_is_none_if_one_class_has_none():
    x, few = _grid(10, 3), _grid(2, 4)
    per_class = {0: _metrics(x, x), 1: _metrics(_grid(10, 5) + 100, few)}
    mean = class_mean(per_class)
    assert (per_class[0]["coverage"], per_class[1]["coverage"], mean["coverage"]) == (1.0, 0.0, 0.5)
    assert per_class[0]["recall"] is not None
    assert per_class[1]["recall"] is mean["recall"] is None
    assert mean["deciles"] == [0.5] * 10


def test_deciles_are_the_coverage_of_each_tenth_from_the_densest():
    nnd = np.random.default_rng(0).permutation(30).astype(np.float32)
    assert deciles(nnd < 4, nnd) == pytest.approx([1, 1 / 3, 0, 0, 0, 0, 0, 0, 0, 0])
    assert deciles(nnd[:9] < 4, nnd[:9]) is None
    x, y = _normal(40, 3, 5), _normal(6, 3, 6)
    metrics = _metrics(x, y, k=5)
    assert np.mean(metrics["deciles"]) == pytest.approx(metrics["coverage"])
    assert metrics["deciles"][0] == is_covered(x, y)[np.argsort(neighbour_distances(x))[:4]].mean()


def test_a_ball_holds_the_images_within_its_radius_and_on_its_surface():
    x, y = _normal(9, 4, 0), _normal(6, 4, 1)
    radii = np.sort(np.linalg.norm(x[:, None] - x, axis=2), axis=1)[:, 3]
    assert np.array_equal(inside_balls(x, y, 3), radii[:, None] >= np.linalg.norm(y[:, None] - x, axis=2).T)
    x = _normal(300, 24, 5)
    assert inside_balls(x, x, 5).sum(axis=1).min() == 6  # its own image and the k nearest others


def test_distances_far_from_the_origin_are_exact_and_faiss_settings_are_restored(monkeypatch):
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 17)  # enables faiss's shortcut
    x = _normal(60, 64, 1) + 100
    assert np.allclose(neighbour_distances(x, 3) ** 2, _nnd2(x, 3), rtol=1e-5)
    assert is_covered(np.concatenate([x[:30], x[:30]]), x[:30], k=1).all()  # all balls have radius 0
    assert faiss.cvar.distance_compute_blas_threshold == 17


def test_a_copy_is_within_the_first_percentile_of_real_to_real_distances():
    x = np.cumsum(np.arange(1.0, 202)).astype(np.float32)  # nearest distances 2, 2, 3, 4 …: percentile 3
    y = np.array([x[-1] + 2, x[-1] + 4, x[50] - 3])
    rows, is_copy = find_copies(x[:, None], y[:, None])
    assert rows.tolist() == [200, 200, 50]
    assert is_copy.tolist() == [True, False, True]


def test_only_images_that_a_change_made_copies_became_copies():
    real = np.array([[0.0], [1], [3], [6]], np.float32)  # a copy is within about 1
    before, after = np.array([[[0.5], [4.5], [9], [9]], [[0.5], [3.5], [6.5], [9]]], np.float32)
    assert became_copies(real, before, after).tolist() == [False, True, True, False]
    assert became_copies(real[:1], before, after).tolist() == [False] * 4


def test_vendi_counts_distinct_directions():
    axes = np.eye(6, dtype=np.float32)
    assert vendi(axes[:4]) == pytest.approx(4)
    assert vendi(np.repeat(axes[:1], 5, axis=0)) == pytest.approx(1)
    assert vendi(np.repeat(3 * axes[:2], 5, axis=0)) == pytest.approx(2)  # more rows than columns; any length


def test_kid_is_unbiased_around_zero_for_one_distribution_and_positive_for_two():
    rng = np.random.default_rng(3)
    same = [kid(rng.normal(size=(40, 4)), rng.normal(size=(30, 4))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 200**0.5
    assert kid(rng.normal(size=(40, 4)), rng.normal(size=(30, 4)) + 2) > 5 * np.std(same)
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    assert kid(x, y) == pytest.approx((1 * 2 + 1) ** 3 + 1 - 2 * (1 + 4**3 + 1 + 7**3) / 4)


def test_kid_of_unit_features_is_computed_on_scaled_values_and_needs_two_images():
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in _normal(24, 24, 4).reshape(2, 12, 24))

    def mean(a, b):
        pairs = [(u, v) for i, u in enumerate(a) for j, v in enumerate(b) if a is not b or i != j]
        return np.mean([(u @ v + 1) ** 3 for u, v in pairs])

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    assert _metrics(x, y)["kid"] == pytest.approx(expected, rel=1e-4)
    assert _metrics(x, y[:1])["kid"] is None
