"""Selection of single images, and pruned scores."""

import itertools

import numpy as np
import pytest

from ims3_ray.method.s3.neighbours import NeighbourShard, nearest_classes, pruned_sums
from ims3_ray.method.s3.objective import Objective
from ims3_ray.method.s3.rounds import local_call, select, solve
from ims3_ray.method.s3.shard import split_classes
from ims3_ray.method.s3.single_images import (
    ball_table,
    closeness_table,
    coverage_changes,
    covered_share,
    evaluate_images,
    select_images,
)

PAPER = Objective(0.4, 0.9)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def instance(num_classes, num_images, seed=0, noise=0.8, width=12):
    """A list of images (N, D) by class, a list of real images (20, D), and real centroids (C, D)."""
    rng = np.random.default_rng(seed)
    means = rng.random((num_classes, width))
    images = [unit(m + noise * rng.random((num_images, width))) for m in means]
    reals = [unit(m + noise * rng.random((20, width))) for m in means]
    return images, reals, unit(np.stack([r.mean(axis=0) for r in reals]))


def covers_of(images, reals, by="balls"):
    pairs = zip(images, reals, strict=True)
    return [
        ball_table(pool, real, 2) if by == "balls" else closeness_table(pool, real) for pool, real in pairs
    ]


@pytest.mark.parametrize("by", ["balls", "distance"])
@pytest.mark.parametrize("shortlist", [64, 1])
@pytest.mark.parametrize("coverage", [0.0, 0.5])
@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_no_single_swap_improves_a_selection_of_images(normalization, coverage, shortlist, by, monkeypatch):
    monkeypatch.setattr("ims3_ray.method.s3.single_images.SHORTLIST", shortlist)
    objective = Objective(0.4, 0.9, 0.01, normalization)
    for seed in range(3):
        images, reals, real = instance(4, 8, seed, noise=3.0, width=4)
        options = {"coverage": coverage, "covers": covers_of(images, reals, by)}
        result = select_images(images, real, objective, 3, **options)
        total = evaluate_images(result.choice, images, real, objective, **options).total
        assert result.terms.total == pytest.approx(total, abs=1e-5)
        for i, out, into in itertools.product(range(4), range(3), range(8)):
            if into not in result.choice[i]:
                swapped = result.choice.copy()
                swapped[i, out] = into
                after = evaluate_images(swapped, images, real, objective, **options).total
                assert after > total - 3 * objective.tolerance(4)


@pytest.mark.parametrize("chosen", [[1, 4, 5, 8], [3]])
@pytest.mark.parametrize("kind", ["balls", "distance"])
def test_changes_of_coverage_are_those_of_its_definition(kind, chosen):
    rng = np.random.default_rng(0)
    covers = rng.random((9, 30)) if kind == "distance" else (rng.random((9, 30)) < 0.2).astype(float)
    chosen, free = np.array(chosen), np.setdiff1d(np.arange(9), chosen)
    changes = coverage_changes(covers, chosen, free)
    for (a, out), (b, into) in itertools.product(enumerate(chosen), enumerate(free)):
        before = covers[chosen].max(axis=0).mean()
        after = covers[[into if n == out else n for n in chosen]].max(axis=0).mean()
        assert changes[a, b] == pytest.approx(after - before, abs=1e-12)


def test_images_are_chosen_at_least_as_well_as_the_subgroups_they_come_in():
    images, _, real = instance(20, 12)
    groups = [unit(pool.reshape(4, 3, -1).mean(axis=1)) for pool in images]
    subgroups = select(groups, real, PAPER)
    start = subgroups.choice[:, None] * 3 + np.arange(3)
    result = select_images(images, real, PAPER, 3, start=start)
    assert evaluate_images(start, images, real, PAPER).total == pytest.approx(subgroups.objective, rel=1e-4)
    assert result.objective < subgroups.objective - 0.01


def test_a_weight_on_coverage_raises_it():
    images, reals, real = instance(10, 20, noise=1.5)
    covers = covers_of(images, reals)
    plain, wide = (select_images(images, real, PAPER, 4, coverage=c, covers=covers).terms for c in (0.0, 5.0))
    assert wide.coverage > plain.coverage
    assert wide.attraction > plain.attraction


def test_coverage_counts_the_balls_that_hold_an_image():
    rng = np.random.default_rng(0)
    images, real = unit(rng.random((6, 4))), unit(rng.random((9, 4)))
    for m, n in itertools.product(range(9), range(6)):
        radius = np.sort(np.linalg.norm(real - real[m], axis=1))[3]
        assert ball_table(images, real, 3)[n, m] == (np.linalg.norm(real[m] - images[n]) <= radius)


def test_closeness_falls_with_the_distance_to_the_nearest_chosen_image():
    rng = np.random.default_rng(0)
    images, real = unit(rng.random((6, 4)) - 0.5), unit(rng.random((9, 4)) - 0.5)
    distances = np.linalg.norm(images[:, None] - real[None], axis=2)
    table = closeness_table(images, real)
    assert table == pytest.approx(1 - distances / 2)
    assert covered_share(table, [1, 4]) == pytest.approx(1 - distances[[1, 4]].min(axis=0).mean() / 2)


def test_same_images_for_any_number_of_shards():
    images, reals, real = instance(10, 9)
    options = {"coverage": 0.3, "covers": covers_of(images, reals)}
    whole = select_images(images, real, PAPER, 3, **options)
    for num_shards in (2, 3, 7, 16):
        result = select_images(images, real, PAPER, 3, num_shards=num_shards, **options)
        assert np.array_equal(result.choice, whole.choice)
        assert result.terms == whole.terms


def test_a_pool_of_exactly_the_size_is_taken_whole():
    images, _, real = instance(4, 3)
    assert select_images(images, real, PAPER, 3).choice.tolist() == [[0, 1, 2]] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 9}, "class 0 has 8 images; size 9 needs at least 9"),
        ({"size": 3, "coverage": 1.0}, "coverage 1.0 needs the real images' features"),
        ({"size": 3, "start": np.zeros((4, 2))}, "start must hold 3 images for each of 4 classes"),
        ({"size": 3, "objective": Objective(0.4, 0.9, partners="pool")}, "partners must be selected"),
    ],
)
def test_impossible_image_selections_are_refused(options, message):
    images, _, real = instance(4, 8)
    with pytest.raises(ValueError, match=message):
        select_images(images, real, **{"objective": PAPER, **options})


def solve_pruned(candidates, real, neighbours, num_shards=1):
    shards = [
        NeighbourShard(
            ids[0], candidates[ids[0] : ids[-1] + 1], real[ids], PAPER, len(candidates), neighbours
        )
        for ids in split_classes(len(candidates), num_shards)
    ]
    return solve(local_call(shards), PAPER)


def test_all_neighbours_are_the_exact_scores():
    candidates, _, real = instance(40, 5)
    assert np.array_equal(solve_pruned(candidates, real, 39).choice, select(candidates, real, PAPER).choice)


def test_far_classes_count_through_their_mean():
    candidates, _, real = instance(7, 3)
    near = np.array([1, 5])
    sums = pruned_sums(candidates[2], 2, near, real, real.sum(axis=0), 0.01)
    for c, found in zip(candidates[2], sums, strict=True):
        exact = sum(np.log(1 - c @ real[j] + 0.01) for j in near)
        assert found == pytest.approx(
            exact + 4 * np.log(1 - c @ real[[0, 3, 4, 6]].mean(axis=0) + 0.01), rel=1e-5
        )


def test_few_neighbours_agree_on_nearly_all_classes():
    candidates, _, real = instance(200, 5, width=24)
    exact, pruned = select(candidates, real, PAPER), solve_pruned(candidates, real, 32)
    assert np.mean(exact.choice == pruned.choice) > 0.95
    assert exact.objective <= pruned.objective + 1e-3 < exact.start
    assert np.array_equal(pruned.choice, solve_pruned(candidates, real, 32, num_shards=3).choice)


def test_nearest_classes_leave_out_the_class_itself():
    centroids = unit(np.random.default_rng(0).random((9, 4)))
    near = nearest_classes(centroids, centroids[3:6], 3, 4)
    for i, row in enumerate(near, 3):
        assert set(row) == set(np.argsort(-(centroids @ centroids[i]))[1:5])
    with pytest.raises(ValueError, match="neighbours must be at least 1, not 0"):
        NeighbourShard(0, [centroids], centroids[:1], PAPER, 1, 0)
