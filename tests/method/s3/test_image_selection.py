"""Selection of single images: swaps, coverage."""

import itertools

import numpy as np
import pytest
from selections import unit

from ims3_ray.method.s3 import image_coverage, image_selection
from ims3_ray.method.s3.distributed_descent import select_centroids
from ims3_ray.method.s3.image_coverage import CoverageChanges, closeness_table, covered_share, on_grid
from ims3_ray.method.s3.image_selection import ImageShard, solve_images
from ims3_ray.method.s3.objective import Objective, Terms, evaluate

PAPER = Objective(0.4, 0.9)


def instance(num_classes, num_images, seed=0, noise=0.8, width=12):
    """Return per class images (N, D) and real images (20, D), and the real centroids (C, D)."""
    rng = np.random.default_rng(seed)
    means = rng.random((num_classes, width))
    images = [unit(m + noise * rng.random((num_images, width))) for m in means]
    reals = [unit(m + noise * rng.random((20, width))) for m in means]
    return images, reals, unit(np.stack([r.mean(axis=0) for r in reals]))


def covers_of(images, reals):
    return [closeness_table(x, f) for f, x in zip(images, reals, strict=True)]


def select_images(images, real, objective, size, covers=None, *, start=None):
    shard = ImageShard(0, images, real, objective, len(images), size, covers)
    return solve_images(shard, objective, start=start)


def evaluate_images(choice, images, real, objective, covers=None):
    """Return L of `choice` (C, K) by its definition."""
    sums = [pool[rows].astype(np.float64).sum(axis=0) for pool, rows in zip(images, choice, strict=True)]
    centroids = [(s / np.linalg.norm(s))[None] for s in sums]
    terms = evaluate(np.zeros(len(images), dtype=int), centroids, real, objective)
    covered = sum(
        v[:, rows].max(axis=1).mean() for v, rows in zip(covers or [], choice, strict=covers is not None)
    )
    return Terms(terms.attraction, terms.separation, terms.total - objective.coverage * covered, covered)


@pytest.mark.parametrize("coverage", [0.0, 0.5])
@pytest.mark.parametrize("shortlist", [64, 1])
@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_no_single_swap_improves_a_selection_of_images(normalization, coverage, shortlist, monkeypatch):
    monkeypatch.setattr(image_selection, "SHORTLIST", shortlist)
    objective = Objective(0.4, 0.9, 0.01, normalization, coverage)
    for seed in range(2):
        images, reals, real = instance(4, 8, seed, noise=3.0, width=4)
        problem = images, real, objective
        covers = covers_of(images, reals)
        result = select_images(*problem, 3, covers)
        total = evaluate_images(result.choice, *problem, covers).total
        assert result.terms.total == pytest.approx(total, abs=1e-5)
        for i, out, into in itertools.product(range(4), range(3), range(8)):
            if into not in result.choice[i]:
                swapped = result.choice.copy()
                swapped[i, out] = into
                after = evaluate_images(swapped, *problem, covers).total
                assert after > total - 3 * objective.tolerance(4)


@pytest.mark.parametrize("chosen", [[1, 4, 5, 8], [3]])
@pytest.mark.parametrize(("kind", "block"), [("ties", 2**24), ("none equal", 2**24), ("none equal", 50)])
def test_coverage_changes_match_the_definition_after_each_swap(kind, block, chosen, monkeypatch):
    monkeypatch.setattr(image_coverage, "BLOCK_COVERS", block)
    rng = np.random.default_rng(0)
    covers = on_grid(rng.random((30, 9)) if kind == "none equal" else (rng.random((30, 9)) < 0.2) + 0.0)
    chosen, coverage = np.array(chosen), CoverageChanges(covers)
    for _ in range(4):
        free = np.setdiff1d(np.arange(9), chosen)
        changes = coverage.by_swap(chosen, free)
        assert np.array_equal(changes, CoverageChanges(covers).by_swap(chosen, free))  # to the bit
        for (a, out), (b, into) in itertools.product(enumerate(chosen), enumerate(free)):
            before = covered_share(covers, chosen)
            after = covers[:, [into if n == out else n for n in chosen]].max(axis=1).mean()
            assert changes[a, b] == pytest.approx(after - before, abs=1e-12)
        chosen[rng.integers(len(chosen))] = rng.choice(free)


def test_images_reach_a_lower_objective_than_their_subgroups():
    images, _, real = instance(20, 12)
    groups = [unit(pool.reshape(4, 3, -1).mean(axis=1)) for pool in images]
    subgroups = select_centroids(groups, real, PAPER)
    start = subgroups.choice[:, None] * 3 + np.arange(3)
    result = select_images(images, real, PAPER, 3, start=start)
    assert evaluate_images(start, images, real, PAPER).total == pytest.approx(subgroups.objective, rel=1e-4)
    assert result.objective < subgroups.objective - 0.01


def test_closeness_falls_with_the_distance_to_the_nearest_chosen_image():
    rng = np.random.default_rng(0)
    images, real = unit(rng.random((6, 4)) - 0.5), unit(rng.random((9, 4)) - 0.5)
    distances = np.linalg.norm(images[:, None] - real[None], axis=2)
    table = closeness_table(real, images)
    assert table == pytest.approx(1 - distances.T / 2)
    nearest = distances[[1, 4]].min(axis=0)
    assert covered_share(table, np.array([1, 4])) == pytest.approx(1 - nearest.mean() / 2)


def test_a_pool_of_ipc_images_is_selected_entirely():
    images, _, real = instance(4, 3)
    assert select_images(images, real, PAPER, 3).choice.tolist() == [[0, 1, 2]] * 4
