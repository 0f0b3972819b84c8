"""Proven minima."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ims3_ray.method.s3.objective import Objective, evaluate
from ims3_ray.method.s3.proof.branch_and_bound import branch_and_bound, exhaustive, whole_problem
from ims3_ray.method.s3.proof.problem import restrict, subgroup_bounds, tighten
from ims3_ray.method.s3.rounds import select

PAPER = Objective(0.4, 0.9)
VARIANTS = [Objective(0.4, 0.9), Objective(0.4, 0.9, 0.01, "none")]


def instance(sizes, seed=0, noise=None, width=24):
    """Candidates (G_i, D) by class around real centroids (C, D); without any structure where noise is None."""
    rng = np.random.default_rng(seed)
    real = rng.random((len(sizes), width))
    weights = (0, 1) if noise is None else (1, noise)
    pools = [weights[0] * r + weights[1] * rng.random((g, width)) for r, g in zip(real, sizes, strict=True)]
    unit = [
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (*pools, real)
    ]
    return unit[:-1], unit[-1]


@pytest.mark.parametrize("partners", ["selected", "pool"])
@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_exhaustive_search_finds_the_smallest_of_all(normalization, partners):
    sizes = [3, 1, 2, 4, 2]
    objective = Objective(0.4, 0.9, 0.01, normalization, partners)
    candidates, real = instance(sizes)
    everything = {
        c: evaluate(c, candidates, real, objective).total for c in itertools.product(*map(range, sizes))
    }
    choice, terms = exhaustive(candidates, real, objective)
    assert tuple(choice) == min(everything, key=everything.get)
    assert terms.total == min(everything.values())


def test_searches_refuse_what_they_cannot_finish():
    with pytest.raises(ValueError, match=r"exhaustive search allows 20000000 choices, not 1e\+09"):
        exhaustive(*instance([10] * 9), PAPER)
    with pytest.raises(
        ValueError, match="exact selection takes up to 2000 candidates, not 2010; set solver to rounds"
    ):
        branch_and_bound(*instance([10] * 201), PAPER)


def test_all_choices_of_equal_worth_give_the_first():
    candidates, real = instance([2, 2, 2])
    doubled = [np.concatenate([c, c]) for c in candidates]
    assert np.array_equal(exhaustive(doubled, real, PAPER)[0], exhaustive(candidates, real, PAPER)[0])


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
@pytest.mark.parametrize("noise", [None, 0.5])
def test_branch_and_bound_finds_what_enumeration_finds(objective, noise, monkeypatch):
    monkeypatch.setattr("ims3_ray.method.s3.proof.branch_and_bound.ENUMERATED", 3)
    for seed in range(8):
        candidates, real = instance([4, 1, 3, 5, 2, 4, 4], seed, noise, width=6)
        result = branch_and_bound(candidates, real, objective, restarts=0)
        choice, best = exhaustive(candidates, real, objective)
        assert result.certificate == "exact"
        assert result.gap == 0
        assert result.objective == pytest.approx(best.total, rel=1e-9)
        assert np.array_equal(result.choice, choice)


@pytest.mark.parametrize("rank", [1, -1])
@pytest.mark.parametrize("noise", [None, 0.5])
def test_branch_and_bound_improves_on_any_start(noise, rank, monkeypatch):
    """From the second best choice, of which little is left to gain, and from the worst."""
    monkeypatch.setattr("ims3_ray.method.s3.proof.branch_and_bound.ENUMERATED", 1)
    monkeypatch.setattr("ims3_ray.method.s3.proof.branch_and_bound.descend", lambda node, x: x)
    for seed in range(6):
        candidates, real = instance([3, 1, 2, 4, 2], seed, noise, width=6)
        everything = {
            c: evaluate(c, candidates, real, PAPER) for c in itertools.product(*map(range, [3, 1, 2, 4, 2]))
        }
        ranked = sorted(everything, key=lambda c: everything[c].total)
        first = replace(
            select(candidates, real, PAPER), choice=np.array(ranked[rank]), terms=everything[ranked[rank]]
        )
        monkeypatch.setattr(
            "ims3_ray.method.s3.proof.branch_and_bound.select", lambda *args, first=first, **options: first
        )
        assert tuple(branch_and_bound(candidates, real, PAPER).choice) == ranked[0]


def test_a_hundred_classes_are_proved_optimal():
    candidates, real = instance([5] * 100, noise=0.2)
    assert branch_and_bound(candidates, real, PAPER, restarts=0).certificate == "exact"


def test_a_search_that_is_cut_off_still_bounds():
    candidates, real = instance([5] * 9, width=4)
    objective = Objective(0.1, 0.9, 0.01, "none")
    _, best = exhaustive(candidates, real, objective)
    result = branch_and_bound(candidates, real, objective, restarts=0, max_nodes=1)
    assert result.certificate == "branch and bound"
    assert result.lower_bound < best.total <= result.objective


def test_separable_objectives_need_no_search():
    candidates, real = instance([3] * 6)
    for objective in (Objective(0.4, 0.9, partners="pool"), Objective(0.4, 0.0)):
        result = branch_and_bound(candidates, real, objective, max_nodes=0)
        assert result.certificate == "exact"
        assert result.objective == pytest.approx(exhaustive(candidates, real, objective)[1].total, abs=1e-6)


@pytest.mark.parametrize("sizes", [[3, 2, 4, 3, 2], [2, 2, 2, 2, 2, 2]])
def test_no_choice_is_below_the_bound_of_its_subgroups(sizes):
    for seed in range(5):
        problem = whole_problem(*instance(sizes, seed, width=5), Objective(0.3, 0.9, 0.01))
        for forward in (True, False, True):
            tighten(problem, forward=forward)
        bounds = subgroup_bounds(problem)
        for choice in itertools.product(*map(range, sizes)):
            total = problem.total(np.array(choice))
            assert all(bounds[i, g] <= total + 1e-9 for i, g in enumerate(choice))


def test_a_restricted_problem_costs_the_same():
    sizes = [3, 2, 4, 3]
    problem = whole_problem(*instance(sizes), PAPER)
    keep = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 1, 0]], dtype=bool)
    smaller = restrict(problem, keep)
    assert smaller.classes.tolist() == [0, 2]
    for x in itertools.product(range(2), range(3)):
        whole = smaller.whole(np.array(x))
        assert all(keep[i, g] for i, g in enumerate(whole))
        assert smaller.total(np.array(x)) == pytest.approx(problem.total(whole), rel=1e-12)
    assert restrict(smaller, np.array([[1, 0, 0], [0, 1, 0]], dtype=bool)).whole(
        np.array([], int)
    ).tolist() == [1, 1, 2, 2]
