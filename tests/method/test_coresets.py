"""Coresets against their definitions, by enumeration."""

from itertools import combinations, product

import numpy as np
import pytest

from ims3_ray.method.coresets import greedy_cover, greedy_coverage, herding, k_center, k_medoids, medoids
from ims3_ray.method.coverage import find_copies, is_covered


def _points(rows: int, seed: int = 0, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


CORESETS = {
    "herding": herding,
    "k_center": k_center,
    "medoids": lambda x, count: medoids(x, count, 0),
    "k_medoids": k_medoids,
    "greedy_coverage": lambda x, count: greedy_coverage(x, count, k=2),
}


@pytest.mark.parametrize("name", CORESETS)
def test_rows_are_distinct_and_reproducible_even_with_duplicates_and_no_more_than_the_class(name):
    x = np.repeat(_points(4), 3, axis=0)
    rows = CORESETS[name](x, 6)
    assert len(set(rows.tolist())) == 6
    assert rows.dtype == np.int64
    assert np.array_equal(rows, CORESETS[name](x, 6))
    assert sorted(CORESETS[name](_points(5), 5).tolist()) == list(range(5))
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"count: .* not {count}"):
            CORESETS[name](_points(5), count)


def test_herding_keeps_the_mean_nearest_to_the_class_mean():
    x = _points(30, seed=1)
    rows = herding(x, 6).tolist()
    for t, row in enumerate(rows):
        free = set(range(30)) - set(rows[:t])
        errors = {r: np.linalg.norm(x.mean(0) - x[[*rows[:t], r]].mean(0)) for r in free}
        assert errors[row] == pytest.approx(min(errors.values()), rel=1e-5)


def test_k_center_starts_at_the_mean_and_is_within_twice_the_smallest_radius():
    x = _points(12, seed=2)
    rows = k_center(x, 3).tolist()
    assert rows[0] == np.linalg.norm(x - x.mean(0), axis=1).argmin()

    def radius(chosen):
        return np.linalg.norm(x[:, None] - x[list(chosen)], axis=2).min(axis=1)

    assert rows[1] == radius(rows[:1]).argmax()
    assert rows[2] == radius(rows[:2]).argmax()
    assert radius(rows).max() <= 2 * min(radius(c).max() for c in combinations(range(12), 3)) + 1e-6


def test_medoids_are_nearest_to_each_cluster_largest_first():
    steps = [[0, 0], [2, 0], [-2, 0], [0, 2], [0, -2], [1, 1], [-1, -1]]
    offsets, right, above = np.array(steps) / 10, [9, 0], [0, 9]
    # each cluster starts with its centre
    x = np.concatenate([right + offsets[:3], offsets, above + offsets[:5]]).astype(np.float32)
    assert medoids(x, 3, "any", 1).tolist() == [3, 10, 0]


def test_medoids_depend_on_the_seed():
    x = _points(200, seed=3, dim=8)
    assert set(medoids(x, 20, 1).tolist()) != set(medoids(x, 20, 2).tolist())


def test_greedy_cover_takes_the_most_new_rows():
    covers = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=bool)
    # columns 0 and 1 tie; all rows are covered before column 3
    assert greedy_cover(covers, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_coverage_is_within_its_bound_and_beats_random_choices(seed):
    x = _points(18, seed=seed + 10)
    rows = greedy_coverage(x, 3, k=2)
    reached = is_covered(x, x[rows], k=2).mean()
    best = max(is_covered(x, x[list(c)], k=2).mean() for c in combinations(range(18), 3))
    assert (1 - 1 / np.e) * best <= reached <= best
    draws = np.random.default_rng(seed)
    assert reached >= np.mean([is_covered(x, x[draws.permutation(18)[:3]], k=2).mean() for _ in range(50)])
    assert find_copies(x, x[rows])[1].all()


@pytest.mark.parametrize("seed", range(5))
def test_no_single_swap_improves_k_medoids(seed):
    x = _points(14, seed)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    rows = k_medoids(x, 4).tolist()
    reached = distances[:, rows].min(axis=1).mean()
    for out, into in product(rows, set(range(14)) - set(rows)):
        swap = [into if row == out else row for row in rows]
        assert reached <= distances[:, swap].min(axis=1).mean() + 1e-6
