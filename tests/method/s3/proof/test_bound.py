"""Lower bounds of the selection objective."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from selections import attractions_of, exhaustive, free_problem

from ims3_ray.method.s3.objective import Objective, evaluate
from ims3_ray.method.s3.proof import bound, pairs, trws
from ims3_ray.method.s3.proof.pairs import Group, matchings, shake
from ims3_ray.method.s3.rounds import select
from ims3_ray.method.s3.shard import offsets_of

METHODS = ["handshake", "trws"]
PAPER = Objective(0.4, 0.9)


def run_here(function, arguments):
    return [function(*values) for values in arguments]


def certified(candidates, real, method, objective=PAPER, run=run_here, choice=None):
    """The selection of the rounds, or `choice`, with its bound."""
    attractions = np.split(
        attractions_of(candidates, real, objective), offsets_of(np.array(list(map(len, candidates))))[1:-1]
    )
    groups = [
        Group(ids.start, candidates[ids.start : ids.stop], np.concatenate(attractions[ids.start : ids.stop]))
        for ids in bound.split_groups(len(candidates))
    ]
    result = select(candidates, real, objective)
    if choice is not None:
        result = replace(result, choice=choice, terms=evaluate(choice, candidates, real, objective))
    return bound.certify(result, groups, objective, method=method, run=run)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_no_choice_is_below_the_bound(method, precision, normalization, monkeypatch):
    monkeypatch.setattr(bound, "GROUP", 3)
    monkeypatch.setattr(pairs, "TILE", 2)
    monkeypatch.setattr(trws, "BLOCK_VALUES", 200)
    monkeypatch.setattr(trws, "DOUBLE_ROWS", 0 if precision == "single" else 1000)
    for seed, epsilon in itertools.product(range(2), (0.0, 0.5)):
        objective = Objective(0.4, 0.9, epsilon, normalization)
        candidates, real = free_problem([3, 1, 4, 2, 4, 3], seed, [None, 0.5][seed % 2])
        _, best = exhaustive(candidates, real, objective)
        worst = np.array([int(np.argmin(c @ r)) for c, r in zip(candidates, real, strict=True)])
        for choice in (None, worst):
            selection = certified(candidates, real, method, objective, choice=choice)
            assert selection.lower_bound <= best.total + 1e-9


def test_the_tighter_method_leaves_a_smaller_gap():
    gaps = [certified(*free_problem([5] * 60, noise=0.3), method).gap for method in METHODS]
    assert 0.25 > gaps[0] > 2 * gaps[1] >= 0


def test_clear_choices_are_proved_optimal():
    result = certified(*free_problem([5] * 30, noise=0.05), "auto")
    assert result.certificate == "trws"
    assert result.gap < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_missing_subgroups_change_nothing(method):
    """Unequal pools are filled up with copies; a pool that holds such copies itself has the same bound."""
    candidates, real = free_problem([2, 4, 1, 4, 3, 4], noise=0.5)
    filled = [np.concatenate([c, c[:1].repeat(4 - len(c), axis=0)]) for c in candidates]
    bounds = [certified(pools, real, method).lower_bound for pools in (candidates, filled)]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-5)
    assert certified(*free_problem([1] * 9), method).gap == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_is_the_same_in_whatever_order_tasks_run(method, monkeypatch):
    monkeypatch.setattr(bound, "GROUP", 6)
    problem = free_problem([3] * 20, noise=0.5)

    def run_backwards(function, arguments):
        return run_here(function, arguments[::-1])[::-1]

    results = [certified(*problem, method, run=run) for run in (run_here, run_backwards)]
    assert results[0].lower_bound == results[1].lower_bound


def test_neither_groups_nor_costs_that_are_computed_again_change_the_bound(monkeypatch):
    monkeypatch.setattr(trws, "MOST_PASSES", trws.LEAST_PASSES)
    problem = free_problem([3, 4, 2, 4] * 6, noise=0.5)
    whole = certified(*problem, "trws").lower_bound
    monkeypatch.setattr(bound, "GROUP", 6)
    assert certified(*problem, "trws").lower_bound == pytest.approx(whole, rel=1e-6)
    monkeypatch.setattr(trws, "TABLE_BYTES", 0)
    assert certified(*problem, "trws").lower_bound == pytest.approx(whole, rel=1e-9)


def test_more_passes_leave_a_smaller_gap(monkeypatch):
    problem, gaps = free_problem([5] * 40), []
    for most in (4, 16, 64):
        monkeypatch.setattr(trws, "MOST_PASSES", most)
        gaps.append(certified(*problem, "trws", Objective(0.4, 0.9, normalization="none")).gap)
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_a_handshake_moves_costs_and_leaves_none_below_zero():
    rng = np.random.default_rng(0)
    costs, a, b = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    new_a, new_b = shake(costs.copy(), a, b)
    left = costs + a[:, None] + b - new_a[:, None] - new_b
    assert left.min() > -1e-12
    np.testing.assert_allclose(left.min(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(left.min(axis=1), 0, atol=1e-12)
    assert np.all(new_a.min(axis=0) + new_b.min(axis=0) >= (costs + a[:, None] + b).min(axis=(0, 1)) - 1e-12)


@pytest.mark.parametrize(("num", "other"), [(6, None), (7, None), (1, None), (5, 5), (3, 8), (8, 3)])
def test_matchings_hold_every_pair_once_and_no_class_twice_a_round(num, other):
    rounds = matchings(num, other)
    of_all = [(int(i), int(j)) for a, b in rounds for i, j in zip(a, b, strict=True)]
    ids = range(num)
    expected = itertools.combinations(ids, 2) if other is None else itertools.product(ids, range(other))
    assert sorted(of_all) == sorted(expected)
    for a, b in rounds:
        for members in [np.concatenate([a, b])] if other is None else [a, b]:
            assert len(set(members.tolist())) == len(members)


def test_only_what_is_asked_for_is_computed():
    problem = free_problem([3] * 5)
    assert certified(*problem, "none").gap is None
    assert certified(*problem, "trws", Objective(0.4, 0.0)).gap == pytest.approx(0, abs=1e-12)
