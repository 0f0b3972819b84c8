"""The series bound, order by order."""

import numpy as np
import pytest
from selections import exhaustive, free_problem, unit

from ims3_ray.method.s3.distributed_descent import select
from ims3_ray.method.s3.objective import Objective, evaluate
from ims3_ray.method.s3.proof.series import class_bounds
from ims3_ray.method.s3.shard import Shard, pick


def bounds_of(candidates, real, choice, objective):
    """The bound by each odd order."""
    shard = Shard(0, candidates, real, objective, len(candidates))
    return class_bounds(shard, choice, pick(candidates, choice), objective).sum(axis=0)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("center", [1.0, 0.0])
def test_what_is_left_out_is_never_negative_and_vanishes(epsilon, center):
    """With one candidate a class only the cut of the series is lost; centers of 0 make cosines negative."""
    rng, objective = np.random.default_rng(0), Objective(0.4, 0.9, epsilon)
    pools = [unit(rows) for rows in center + rng.standard_normal((30, 1, 16))]
    choice, real = np.zeros(30, int), np.concatenate(pools[1:] + pools[:1])
    bounds = bounds_of(pools, real, choice, objective)
    total = evaluate(choice, pools, real, objective).total
    assert np.all(np.diff(bounds) > -1e-6)
    assert bounds[0] < total - 0.01
    assert bounds[-1] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("scatter", [1.0, 1e-2, 3e-3])
def test_no_order_exceeds_the_best_choice_however_close_all_centroids_are(scatter):
    rng, objective = np.random.default_rng(1), Objective(0.4, 0.9)
    pools = [unit(1 + scatter * rng.standard_normal((4, 24))) for _ in range(6)]
    real = unit(1 + scatter * rng.standard_normal((6, 24)))
    _, best = exhaustive(pools, real, objective)
    for choice in (select(pools, real, objective).choice, np.zeros(6, int)):
        assert bounds_of(pools, real, choice, objective).max() <= best.total + 1e-4 * abs(best.total)


def test_candidates_that_coincide_with_chosen_ones_do_not_break_the_bound():
    candidates, real = free_problem([3] * 6, noise=0.5)
    choice = select(candidates, real, Objective(0.4, 0.9)).choice
    candidates[0][(choice[0] + 1) % 3] = candidates[1][choice[1]]
    _, best = exhaustive(candidates, real, Objective(0.4, 0.9))
    bounds = bounds_of(candidates, real, choice, Objective(0.4, 0.9))
    assert np.all(np.isfinite(bounds))
    assert bounds.max() <= best.total + 1e-6


def test_the_gap_falls_as_the_classes_grow():
    objective, gaps = Objective(0.4, 0.9, normalization="none"), []
    for num_classes in (20, 80, 320):
        candidates, real = free_problem([4] * num_classes)
        selection = select(candidates, real, objective)
        bound = bounds_of(candidates, real, selection.choice, objective).max()
        gaps.append((selection.objective - bound) / abs(selection.objective))
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0
