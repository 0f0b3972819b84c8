"""Lower bounds of the selection objective."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ims3_ray.method.s3.objective import Objective, evaluate
from ims3_ray.method.s3.proof import bound as certificate
from ims3_ray.method.s3.proof import pairs as certificate_pairs
from ims3_ray.method.s3.proof import trws as certificate_trws
from ims3_ray.method.s3.proof.bound import certify, make_groups, run_here
from ims3_ray.method.s3.proof.branch_and_bound import exhaustive, pair_tables
from ims3_ray.method.s3.proof.pairs import matchings, shake
from ims3_ray.method.s3.rounds import select
from ims3_ray.method.s3.shard import Shard

METHODS = ["half_pair", "handshake", "trws"]


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


def certified(candidates, real, objective, method, run=run_here, choice=None):
    """The selection of the rounds, or `choice`, with its bound."""
    groups = make_groups(candidates, Shard(0, candidates, real, objective, len(candidates)).attractions())
    result = select(candidates, real, objective)
    if choice is not None:
        result = replace(result, choice=choice, terms=evaluate(choice, candidates, real, objective))
    return certify(result, groups, objective, method=method, run=run)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_no_choice_is_below_the_bound(method, precision, normalization, monkeypatch):
    monkeypatch.setattr(certificate, "GROUP", 3)
    monkeypatch.setattr(certificate_pairs, "TILE", 2)
    monkeypatch.setattr(certificate_trws, "BLOCK_VALUES", 200)
    monkeypatch.setattr(certificate_trws, "DOUBLE_ROWS", 0 if precision == "single" else 1000)
    for seed, epsilon in itertools.product(range(2), (0.0, 0.5)):
        objective = Objective(0.4, 0.9, epsilon, normalization)
        candidates, real = instance([3, 1, 4, 2, 4, 3], seed, [None, 0.5][seed % 2])
        _, best = exhaustive(candidates, real, objective)
        worst = np.array([int(np.argmin(c @ r)) for c, r in zip(candidates, real, strict=True)])
        for choice in (None, worst):
            assert (
                certified(candidates, real, objective, method, choice=choice).lower_bound <= best.total + 1e-9
            )


def test_the_half_pair_bound_is_its_definition():
    candidates, real = instance([3, 1, 4, 2], noise=0.5)
    unary, pairs, offsets = pair_tables(candidates, real, Objective(0.4, 0.9))
    result = certified(candidates, real, Objective(0.4, 0.9), "half_pair")
    chosen, bound = offsets[:-1] + result.choice, 0.0
    blocks = [slice(a, b) for a, b in itertools.pairwise(offsets)]
    for i, own in enumerate(blocks):
        costs = unary[own].copy()
        for j, other in enumerate(blocks):
            if i != j:
                linear = pairs[own, chosen[j]]
                left = (
                    pairs[own, other]
                    - linear[:, None]
                    - pairs[chosen[i], other]
                    + pairs[chosen[i], chosen[j]]
                )
                costs += linear - 0.5 * pairs[chosen[i], chosen[j]] + 0.5 * left.min(axis=1)
        bound += costs.min()
    assert result.lower_bound == pytest.approx(bound, rel=1e-4)


def test_tighter_methods_leave_smaller_gaps():
    candidates, real = instance([5] * 60, noise=0.3)
    gaps = [certified(candidates, real, Objective(0.4, 0.9), method).gap for method in METHODS]
    assert 0.5 > gaps[0] > 2 * gaps[1] > 4 * gaps[2] >= 0


def test_clear_choices_are_proved_optimal():
    result = certified(*instance([5] * 30, noise=0.05), Objective(0.4, 0.9), "auto")
    assert result.certificate == "trws"
    assert result.gap < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_one_candidate_a_class_leaves_no_gap(method):
    assert certified(*instance([1] * 9), Objective(0.4, 0.9), method).gap == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_missing_subgroups_change_nothing(method):
    """Unequal pools are filled up with copies; a pool that holds such copies itself has the same bound."""
    candidates, real = instance([2, 4, 1, 4, 3, 4], noise=0.5)
    filled = [np.concatenate([c, c[:1].repeat(4 - len(c), axis=0)]) for c in candidates]
    bounds = [certified(c, real, Objective(0.4, 0.9), method).lower_bound for c in (candidates, filled)]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_is_the_same_in_whatever_order_tasks_run(method, monkeypatch):
    monkeypatch.setattr(certificate, "GROUP", 6)
    candidates, real = instance([3] * 20, noise=0.5)

    def run_backwards(function, arguments):
        return [function(*values) for values in arguments[::-1]][::-1]

    results = [
        certified(candidates, real, Objective(0.4, 0.9), method, run) for run in (run_here, run_backwards)
    ]
    assert results[0].lower_bound == results[1].lower_bound


def test_costs_that_are_kept_give_the_bound_of_costs_that_are_computed_again(monkeypatch):
    monkeypatch.setattr(certificate_trws, "MOST_PASSES", certificate_trws.LEAST_PASSES)
    candidates, real = instance([3, 4, 2, 4] * 6, noise=0.5)
    kept = certified(candidates, real, Objective(0.4, 0.9), "trws").lower_bound
    monkeypatch.setattr(certificate_trws, "TABLE_BYTES", 0)
    assert certified(candidates, real, Objective(0.4, 0.9), "trws").lower_bound == pytest.approx(
        kept, rel=1e-9
    )


def test_more_passes_leave_a_smaller_gap(monkeypatch):
    candidates, real = instance([5] * 40)
    objective, gaps = Objective(0.4, 0.9, normalization="none"), []
    for most in (4, 16, 64):
        monkeypatch.setattr(certificate_trws, "MOST_PASSES", most)
        gaps.append(certified(candidates, real, objective, "trws").gap)
    assert gaps[0] > gaps[1] > gaps[2] > 0


@pytest.mark.parametrize("method", ["half_pair", "trws"])
def test_the_bound_does_not_depend_on_how_classes_are_grouped(method, monkeypatch):
    candidates, real = instance([3] * 20, noise=0.5)
    whole = certified(candidates, real, Objective(0.4, 0.9), method).lower_bound
    monkeypatch.setattr(certificate, "GROUP", 6)
    monkeypatch.setattr(certificate_pairs, "TILE", 4)
    assert certified(candidates, real, Objective(0.4, 0.9), method).lower_bound == pytest.approx(
        whole, rel=1e-6
    )


def test_a_handshake_moves_costs_and_leaves_none_below_zero():
    rng = np.random.default_rng(0)
    costs, a, b = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    new_a, new_b = shake(costs.copy(), a, b)
    left = costs + a[:, None] + b - new_a[:, None] - new_b
    assert left.min() > -1e-12
    np.testing.assert_allclose(left.min(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(left.min(axis=1), 0, atol=1e-12)
    assert np.all(new_a.min(axis=0) + new_b.min(axis=0) >= (costs + a[:, None] + b).min(axis=(0, 1)) - 1e-12)


@pytest.mark.parametrize("sizes", [(6, None), (7, None), (1, None), (5, 5), (3, 8), (8, 3)])
def test_matchings_hold_every_pair_once_and_no_class_twice_a_round(sizes):
    num, other = sizes
    rounds = matchings(num, other)
    pairs = [(int(i), int(j)) for a, b in rounds for i, j in zip(a, b, strict=True)]
    expected = (
        itertools.combinations(range(num), 2)
        if other is None
        else itertools.product(range(num), range(other))
    )
    assert sorted(pairs) == sorted(expected)
    for a, b in rounds:
        members = [a, b] if other is not None else [np.concatenate([a, b])]
        assert all(len(set(ids.tolist())) == len(ids) for ids in members)


def test_only_what_is_asked_for_is_computed():
    candidates, real = instance([3] * 5)
    assert certified(candidates, real, Objective(0.4, 0.9), "none").gap is None
    assert certified(candidates, real, Objective(0.4, 0.9, partners="pool"), "trws").certificate == "exact"
    assert certified(candidates, real, Objective(0.4, 0.0), "trws").gap == pytest.approx(0, abs=1e-12)
    with pytest.raises(
        ValueError, match="certify must be one of auto, none, half_pair, handshake, trws, not 'best'"
    ):
        certified(candidates, real, Objective(0.4, 0.9), "best")
