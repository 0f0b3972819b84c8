"""Lower bounds of the selection objective."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from selections import LocalShards, exhaustive, free_problem, split_here, unit

from ims3_ray.method.s3 import bound, trws
from ims3_ray.method.s3.distributed_descent import select_centroids
from ims3_ray.method.s3.objective import Objective, evaluate, pick
from ims3_ray.method.s3.shard import Shard

METHODS = ["series", "trws"]
PAPER = Objective(0.4, 0.9)
PUBLISHED = Objective(0.4, 0.9, normalization="none")


def run_here(function, arguments):
    return [function(*values) for values in arguments]


def certified(candidates, real, method, objective=PAPER, choice=None, shards=1):
    """The solver's selection, or `choice`, with its bound."""
    result = select_centroids(candidates, real, objective)
    if choice is not None:
        result = replace(result, choice=choice, terms=evaluate(choice, candidates, real, objective))
    joined = LocalShards(split_here(Shard, candidates, real, objective, shards))
    return bound.certify(result, joined, objective, method=method, run=run_here)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_no_choice_is_below_the_bound(method, precision, normalization, monkeypatch):
    monkeypatch.setattr(trws, "DOUBLE_PLACES", 0 if precision == "single" else 1000)
    for seed, epsilon in itertools.product(range(2), (0.0, 0.5)):
        objective = Objective(0.4, 0.9, epsilon, normalization)
        candidates, real = free_problem([3, 1, 4, 2, 4, 3], seed, [None, 0.5][seed % 2])
        _, best = exhaustive(candidates, real, objective)
        worst = np.array([int(np.argmin(c @ r)) for c, r in zip(candidates, real, strict=True)])
        for choice in (None, worst):
            selection = certified(candidates, real, method, objective, choice=choice)
            assert selection.lower_bound <= best.total + 1e-9


def test_auto_takes_the_larger_bound(monkeypatch):
    monkeypatch.setattr(trws, "MAX_PASSES", 20)
    few, many = free_problem([4] * 12, noise=0.3), free_problem([4] * 60)
    for problem, objective, better in ((few, PAPER, "trws"), (many, PUBLISHED, "series")):
        bounds = {method: certified(*problem, method, objective).lower_bound for method in METHODS}
        auto = certified(*problem, "auto", objective)
        assert auto.certificate == better
        assert auto.lower_bound == max(bounds.values()) > min(bounds.values())


def test_auto_skips_trws_if_it_does_not_fit(monkeypatch):
    monkeypatch.setattr(trws, "MAX_PLACES", 47)
    assert certified(*free_problem([3] * 11 + [4]), "auto").certificate == "series"


def test_clear_choices_are_proven_optimal():
    problem = free_problem([5] * 30, noise=0.05)
    assert certified(*problem, "trws").gap < 1e-6
    auto = certified(*problem, "auto")
    assert (auto.certificate, auto.gap < bound.PROOF_GAP) == ("series", True)


@pytest.mark.parametrize("method", METHODS)
def test_padding_with_repeated_subgroups_keeps_the_bound(method):
    candidates, real = free_problem([2, 4, 1, 4, 3, 4], noise=0.5)
    filled = [np.concatenate([c, c[:1].repeat(4 - len(c), axis=0)]) for c in candidates]
    bounds = [certified(pools, real, method).lower_bound for pools in (candidates, filled)]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-5)
    assert certified(*free_problem([1] * 9), method).gap == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_bound_is_the_same_for_any_number_of_shards(method, monkeypatch):
    monkeypatch.setattr(trws, "MAX_PASSES", 4)
    problem = free_problem([3, 4, 2, 4] * 33, noise=0.5)  # tiles of two classes
    bounds = {certified(*problem, method, shards=shards).lower_bound for shards in (1, 2, 7)}
    assert len(bounds) == 1


def test_none_computes_nothing_and_trws_without_separation_is_exact():
    problem = free_problem([3] * 5)
    assert certified(*problem, "none").gap is None
    assert certified(*problem, "trws", Objective(0.4, 0.0)).gap == pytest.approx(0, abs=1e-12)


def series_bounds(candidates, real, choice, objective=PAPER):
    """The series bound by each odd order."""
    shard = Shard(0, candidates, real, objective, len(candidates))
    return bound.class_bounds(shard, choice, pick(candidates, choice), objective).sum(axis=0)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("center", [1.0, 0.0])
def test_remainder_of_the_series_is_never_negative_and_vanishes(epsilon, center):
    """With one candidate per class, only the remainder is lost; centers of 0 make cosines negative."""
    rng, objective = np.random.default_rng(0), Objective(0.4, 0.9, epsilon)
    pools = [unit(rows) for rows in center + rng.standard_normal((30, 1, 16))]
    choice, real = np.zeros(30, int), np.concatenate(pools[1:] + pools[:1])
    bounds = series_bounds(pools, real, choice, objective)
    total = evaluate(choice, pools, real, objective).total
    assert np.all(np.diff(bounds) > -1e-6)
    assert bounds[0] < total - 0.01
    assert bounds[-1] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("scatter", [1.0, 1e-2, 3e-3])
def test_no_order_exceeds_the_best_choice_even_for_close_centroids(scatter):
    rng = np.random.default_rng(1)
    pools = [unit(1 + scatter * rng.standard_normal((4, 24))) for _ in range(6)]
    real = unit(1 + scatter * rng.standard_normal((6, 24)))
    _, best = exhaustive(pools, real, PAPER)
    for choice in (select_centroids(pools, real, PAPER).choice, np.zeros(6, int)):
        assert series_bounds(pools, real, choice).max() <= best.total + 1e-4 * abs(best.total)


def test_coinciding_candidates_keep_the_series_bound_valid():
    candidates, real = free_problem([3] * 6, noise=0.5)
    choice = select_centroids(candidates, real, PAPER).choice
    candidates[0][(choice[0] + 1) % 3] = candidates[1][choice[1]]
    bounds = series_bounds(candidates, real, choice)
    assert np.all(np.isfinite(bounds))
    assert bounds.max() <= exhaustive(candidates, real, PAPER)[1].total + 1e-6


def test_gap_of_the_series_falls_with_the_number_of_classes():
    gaps = []
    for num_classes in (20, 80, 320):
        candidates, real = free_problem([4] * num_classes)
        selection = select_centroids(candidates, real, PUBLISHED)
        best = series_bounds(candidates, real, selection.choice, PUBLISHED).max()
        gaps.append((selection.objective - best) / abs(selection.objective))
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0
