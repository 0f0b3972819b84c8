"""Proven minima."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from selections import exhaustive, free_problem

from ims3_ray.method.s3 import branch_and_bound as search
from ims3_ray.method.s3.branch_and_bound import (
    branch_and_bound,
    restrict,
    subgroup_bounds,
    tighten,
    whole_problem,
)
from ims3_ray.method.s3.distributed_descent import select_centroids
from ims3_ray.method.s3.objective import Objective, evaluate

PAPER = Objective(0.4, 0.9)
VARIANTS = [Objective(0.4, 0.9), Objective(0.4, 0.9, 0.01, "none")]


def every_choice(sizes):
    return [np.array(choice) for choice in itertools.product(*map(range, sizes))]


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
@pytest.mark.parametrize("noise", [None, 0.5])
def test_branch_and_bound_equals_enumeration(objective, noise, monkeypatch):
    monkeypatch.setattr(search, "MAX_ENUMERATED", 3)
    for seed in range(4):
        candidates, real = free_problem([4, 1, 3, 5, 2, 4, 4], seed, noise, width=6)
        result = branch_and_bound(candidates, real, objective, restarts=0)
        choice, best = exhaustive(candidates, real, objective)
        assert result.certificate == "exact"
        assert result.gap == 0
        assert result.objective == pytest.approx(best.total, rel=1e-9)
        assert np.array_equal(result.choice, choice)


@pytest.mark.parametrize("rank", [1, -1])
@pytest.mark.parametrize("noise", [None, 0.5])
def test_branch_and_bound_improves_on_any_start(noise, rank, monkeypatch):
    """From the second best choice, with little to gain, and from the worst."""
    monkeypatch.setattr(search, "MAX_ENUMERATED", 1)
    monkeypatch.setattr(search, "descend", lambda node, x: x)
    for seed in range(4):
        problem = *free_problem([3, 1, 2, 4, 2], seed, noise, width=6), PAPER
        ranked = sorted(every_choice([3, 1, 2, 4, 2]), key=lambda x: evaluate(x, *problem).total)
        start, terms = ranked[rank], evaluate(ranked[rank], *problem)
        first = replace(select_centroids(*problem), choice=start, terms=terms)
        monkeypatch.setattr(search, "select_centroids", lambda *args, first=first, **options: first)
        assert np.array_equal(branch_and_bound(*problem).choice, ranked[0])


def test_a_hundred_classes_are_proven_optimal():
    candidates, real = free_problem([5] * 100, noise=0.2)
    assert branch_and_bound(candidates, real, PAPER, restarts=0).certificate == "exact"


def test_an_interrupted_search_returns_a_bound():
    candidates, real = free_problem([5] * 7, width=4)
    objective = Objective(0.1, 0.9, 0.01, "none")
    _, best = exhaustive(candidates, real, objective)
    result = branch_and_bound(candidates, real, objective, restarts=0, max_nodes=1)
    assert result.certificate == "branch and bound"
    assert result.lower_bound < best.total <= result.objective


def test_without_separation_no_node_is_searched():
    candidates, real = free_problem([3] * 6)
    objective = Objective(0.4, 0.0)
    result = branch_and_bound(candidates, real, objective, max_nodes=0)
    assert result.certificate == "exact"
    assert result.objective == pytest.approx(exhaustive(candidates, real, objective)[1].total, abs=1e-6)


@pytest.mark.parametrize("sizes", [[3, 2, 4, 3, 2], [2, 2, 2, 2, 2, 2]])
def test_no_choice_is_below_the_bound_of_its_subgroups(sizes):
    for seed in range(5):
        problem = whole_problem(*free_problem(sizes, seed, width=5), Objective(0.3, 0.9, 0.01))
        for forward in (True, False, True):
            tighten(problem, forward=forward)
        bounds = subgroup_bounds(problem)
        for choice in every_choice(sizes):
            assert (bounds[np.arange(len(sizes)), choice] <= problem.total(choice) + 1e-9).all()


def test_a_restricted_problem_costs_the_same():
    sizes = [3, 2, 4, 3]
    problem = whole_problem(*free_problem(sizes), PAPER)
    keep = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 1, 0]], dtype=bool)
    smaller = restrict(problem, keep)
    assert smaller.classes.tolist() == [0, 2]
    for x in every_choice([2, 3]):
        whole = smaller.whole(x)
        assert keep[np.arange(4), whole].all()
        assert smaller.total(x) == pytest.approx(problem.total(whole), rel=1e-12)
    fixed = restrict(smaller, np.array([[1, 0, 0], [0, 1, 0]], dtype=bool))
    assert fixed.whole(np.array([], int)).tolist() == [1, 1, 2, 2]
