"""S³: objective, rounds, shards."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ims3_ray.method.s3 import objective as selection
from ims3_ray.method.s3 import rounds as selection_rounds
from ims3_ray.method.s3 import walk as selection_walk
from ims3_ray.method.s3.objective import Objective, evaluate, real_centroid, subgroup_centroids
from ims3_ray.method.s3.proof.branch_and_bound import exhaustive
from ims3_ray.method.s3.rounds import accept, local_call, select, solve
from ims3_ray.method.s3.shard import History, Moves, Shard, split_classes
from ims3_ray.method.s3.walk import best_pair, walk, walk_pairs

PAPER = Objective(0.4, 0.9)
VARIANTS = [
    Objective(0.4, 0.9, epsilon, normalization)
    for epsilon in (0.0, 0.1)
    for normalization in ("per_class", "none")
]


@pytest.fixture(autouse=True)
def small_problems_take_rounds_too(request, monkeypatch):
    if "walk" not in request.node.name:
        monkeypatch.setattr(selection_rounds, "MOST_VALUES", 0)


def instance(num_classes, sizes, seed=0, noise=0.6, width=24):
    """Candidates around non-negative class means: a list of (G_i, D), and the means (C, D)."""
    rng = np.random.default_rng(seed)
    sizes = np.broadcast_to(sizes, num_classes)
    means = np.abs(rng.random(width) + 0.7 * rng.standard_normal((num_classes, width)))
    pools = [np.abs(m + noise * rng.standard_normal((g, width))) for m, g in zip(means, sizes, strict=True)]
    unit = [(p / np.linalg.norm(p, axis=-1, keepdims=True)).astype(np.float32) for p in (*pools, means)]
    return unit[:-1], unit[-1]


def make_shards(candidates, real, objective, num_shards):
    return [
        Shard(
            ids.start,
            candidates[ids.start : ids.stop],
            real[ids.start : ids.stop],
            objective,
            len(candidates),
        )
        for ids in split_classes(len(candidates), num_shards)
    ]


def assert_same(a, b):
    assert np.array_equal(a.choice, b.choice)
    assert a.terms == b.terms
    assert a.rounds == b.rounds


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_the_objective_is_its_definition(objective, monkeypatch):
    monkeypatch.setattr(selection, "BLOCK", 2)
    candidates, real = instance(5, [3, 1, 4, 2, 3])
    choice, epsilon = [2, 0, 3, 1, 0], objective.epsilon
    chosen = [candidates[i][g].astype(float) for i, g in enumerate(choice)]
    attraction = sum(np.log(1 - c @ r + epsilon) for c, r in zip(chosen, real.astype(float), strict=True))
    separation = sum(np.log(1 - a @ b + epsilon) for a, b in itertools.combinations(chosen, 2))
    weight = 0.9 if objective.normalization == "none" else 2 * 0.9 / 4
    terms = evaluate(choice, candidates, real, objective)
    assert terms.attraction == pytest.approx(attraction, rel=1e-12)
    assert terms.separation == pytest.approx(separation, rel=1e-12)
    assert terms.total == pytest.approx(0.4 * attraction - weight * separation, rel=1e-12)
    pool = sum(
        0.5 * np.log(1 - candidates[j].astype(float) @ c + epsilon).mean()
        for (i, c), j in itertools.product(enumerate(chosen), range(5))
        if i != j
    )
    assert evaluate(
        choice, candidates, real, replace(objective, partners="pool")
    ).separation == pytest.approx(pool)


def test_pools_of_one_candidate_make_both_kinds_of_partners_equal():
    candidates, real = instance(6, 1)
    objectives = [Objective(0.4, 0.9, partners=partners) for partners in ("selected", "pool")]
    selected, pool = (evaluate(np.zeros(6, int), candidates, real, objective) for objective in objectives)
    assert pool.separation == pytest.approx(selected.separation, rel=1e-12)


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_no_single_swap_improves_a_selection(objective, noise):
    candidates, real = instance(70, np.arange(70) % 5 + 1, noise=noise)
    result = select(candidates, real, objective)
    assert result.objective == evaluate(result.choice, candidates, real, objective).total
    for i, pool in enumerate(candidates):
        for g in range(len(pool)):
            swapped = result.choice.copy()
            swapped[i] = g
            total = evaluate(swapped, candidates, real, objective).total
            assert total > result.objective - 2 * objective.tolerance(70), (i, g)


@pytest.mark.parametrize("objective", [*VARIANTS, Objective(0.4, 0.9, partners="pool")], ids=str)
def test_ascent_never_beats_exhaustive_search(objective):
    for seed in range(5):
        candidates, real = instance(6, [4, 3, 1, 4, 2, 4], seed, noise=2.0)
        _, best = exhaustive(candidates, real, objective)
        result = select(candidates, real, objective, restarts=3)
        assert best.total <= result.objective + 1e-6 <= result.start + 2e-6


def test_restarts_find_the_optimum_of_structured_problems():
    for seed in range(6):
        candidates, real = instance(7, 4, seed, noise=0.8)
        _, best = exhaustive(candidates, real, PAPER)
        assert select(candidates, real, PAPER, restarts=8).objective == pytest.approx(best.total, abs=1e-6)


def test_restarts_can_only_help():
    objective, gains = Objective(0.1, 0.9, normalization="none"), []
    for seed in range(4):
        candidates, real = instance(10, 5, seed, noise=9.0, width=5)
        totals = [select(candidates, real, objective, restarts=r).objective for r in (0, 1, 4)]
        assert totals[0] >= totals[1] >= totals[2]
        gains.append(totals[0] - totals[2])
    assert max(gains) > 0.01


def test_separable_partners_are_solved_exactly():
    candidates, real = instance(6, [4, 3, 1, 4, 2, 4], noise=2.0)
    objective = Objective(0.4, 0.9, partners="pool")
    result = select(candidates, real, objective, num_shards=3)
    choice, best = exhaustive(candidates, real, objective)
    assert np.array_equal(result.choice, choice)
    assert result.objective == pytest.approx(best.total, abs=1e-6)
    assert result.gap == 0


@pytest.mark.parametrize("num_classes", [10, 130])
@pytest.mark.parametrize(
    "objective", [VARIANTS[0], VARIANTS[1], Objective(0.4, 0.9, partners="pool")], ids=str
)
def test_same_selection_for_any_number_of_shards(num_classes, objective):
    candidates, real = instance(num_classes, np.arange(num_classes) % 4 + 1, noise=3.0)
    single = select(candidates, real, objective, restarts=1)
    for num_shards in (2, 7, 16) if num_classes > 10 else (2, 3):
        assert_same(single, select(candidates, real, objective, restarts=1, num_shards=num_shards))


def test_shards_cover_every_class_once():
    for num_classes, num_shards in itertools.product((1, 10, 100, 1000, 21841), (1, 2, 3, 7, 16)):
        ranges = split_classes(num_classes, num_shards)
        assert [i for ids in ranges for i in ids] == list(range(num_classes))
        assert len(ranges) == min(num_shards, num_classes)
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 16 + num_classes // 100


def test_a_rebuilt_shard_answers_the_same():
    candidates, real = instance(130, 4, noise=3.0)
    objective = Objective(0.4, 0.9, normalization="none")
    shards = make_shards(candidates, real, objective, 3)
    calls = itertools.count()

    def call_with_losses(method, *arguments):
        """Every call loses a shard; and its answer is asked for twice."""
        lost = next(calls) % 3
        shards[lost] = make_shards(candidates, real, objective, 3)[lost]
        local_call(shards)(method, *arguments)
        return local_call(shards)(method, *arguments)

    whole = select(candidates, real, objective)
    assert whole.rounds > 2
    assert_same(whole, solve(call_with_losses, objective))


def test_a_shard_follows_moves_as_if_it_had_started_from_them():
    candidates, real = instance(100, 4, noise=3.0)
    first = np.zeros(100, int)
    moved = np.arange(100) % 3 == 0
    second = np.where(moved, 2, 0)
    at = lambda choice: np.stack([c[g] for c, g in zip(candidates, choice, strict=True)])  # noqa: E731
    ids = np.flatnonzero(moved)[::-1]
    moves = Moves(ids, second[ids], np.zeros(len(ids)), np.zeros(len(ids)), at(second)[ids])
    stepped = Shard(0, candidates, real, PAPER, 100)
    stepped.propose(History(first, at(first)), 0.0)
    stepped = stepped.propose(History(first, at(first), (moves,)), 0.0)
    fresh = Shard(0, candidates, real, PAPER, 100).propose(History(second, at(second)), 0.0)
    assert np.array_equal(stepped.classes, fresh.classes)
    assert np.array_equal(stepped.choice, fresh.choice)
    np.testing.assert_allclose(stepped.gains, fresh.gains, atol=1e-6)


@pytest.mark.parametrize("block", [256, 4])
def test_every_accepted_move_pays_after_the_ones_before_it(block, monkeypatch):
    """A class whose move pays only while another stays is not moved with it, and the larger gain comes first."""
    monkeypatch.setattr(selection_rounds, "ACCEPT_BLOCK", block)
    candidates, real = instance(30, 4, noise=3.0)
    objective = Objective(0.0, 0.9, normalization="none")
    for seed in range(10):
        choice = np.random.default_rng(seed).integers(4, size=30)
        centroids = np.stack([c[g] for c, g in zip(candidates, choice, strict=True)])
        proposals = Shard(0, candidates, real, objective, 30).propose(History(choice, centroids), 1e-6)
        shuffled = proposals.take(np.random.default_rng(1).permutation(len(proposals.gains)))
        moves = accept(shuffled, centroids, objective, 1e-6)
        assert np.all(np.diff(moves.gains) <= 0)
        assert 0 < len(moves.classes) <= 30 // 4
        last = evaluate(choice, candidates, real, objective).total
        for i, g in zip(moves.classes, moves.choice, strict=True):
            choice[i] = g
            total = evaluate(choice, candidates, real, objective).total
            assert total < last
            last = total


def test_the_order_of_classes_does_not_change_what_is_chosen():
    candidates, real = instance(50, 4)
    order = np.random.default_rng(0).permutation(50)
    shuffled = select([candidates[i] for i in order], real[order], PAPER)
    assert np.array_equal(shuffled.choice, select(candidates, real, PAPER).choice[order])


def test_ties_go_to_the_first_subgroup():
    candidates, real = instance(6, 3)
    doubled = [np.concatenate([c, c]) for c in candidates]
    assert np.array_equal(select(doubled, real, PAPER).choice, select(candidates, real, PAPER).choice)


def test_centroids_are_unit_length_means_of_unit_length_features():
    rng = np.random.default_rng(0)
    features, subgroups = rng.random((9, 5)) * 7, np.array([4, 1, 4, 1, 4, 1, 4, 9, 9])
    ids, centroids = subgroup_centroids(features, subgroups)
    assert ids.tolist() == [1, 4, 9]
    assert centroids.dtype == np.float32
    for g, centroid in zip(ids, centroids, strict=True):
        mean = np.mean([f / np.linalg.norm(f) for f in features[subgroups == g]], axis=0)
        np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(real_centroid(features[subgroups == 9]), centroids[2])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda c, r: (c[:3], r), "real must hold one centroid per class"),
        (
            lambda c, r: ([*c[:3], c[3][:, :7]], r),
            "class 3: candidate centroids have 7 values, the real ones 24",
        ),
        (lambda c, r: ([*c[:2], c[2][:0], c[3]], r), "class 2 needs at least one candidate"),
        (lambda c, r: ([*c[:2], c[2] * np.nan, c[3]], r), "class 2: candidate centroid 0 must be finite"),
        (
            lambda c, r: (c, r * np.array([[1], [1], [0], [1]])),
            "class 2: real centroid 2 must be finite and of unit",
        ),
        (lambda c, r: ([*c[:3], np.concatenate([c[3], r[3:]])], r), "class 3 equals its real centroid"),
        (lambda c, r: ([*c[:3], c[0]], r), "equals one of class"),
    ],
)
def test_bad_centroids_are_refused_by_class(broken, message):
    with pytest.raises(ValueError, match=message):
        select(*broken(*instance(4, 2)), PAPER)


def test_coinciding_centroids_are_fine_with_epsilon():
    candidates, real = instance(4, 2)
    result = select([*candidates[:3], candidates[0]], real, Objective(0.4, 0.9, epsilon=1e-3))
    assert np.isfinite(result.objective)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -1}, "alpha must be a finite number of at least 0"),
        ({"beta": float("nan")}, "beta must be a finite"),
        ({"epsilon": -1e-3}, "epsilon must be a finite"),
        ({"normalization": "class"}, "normalization must be one of per_class, none, not 'class'"),
        ({"partners": "all"}, "partners must be one of selected, pool"),
    ],
)
def test_impossible_objectives_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Objective(**{"alpha": 0.4, "beta": 0.9, **fields})


@pytest.mark.parametrize(
    ("features", "subgroups", "message"),
    [
        (np.ones((2, 3)), [0], "class 7: subgroups must be one number per feature"),
        (np.array([[1.0, 0], [0, 0]]), [0, 1], "class 7: row 1 has length 0.0"),
        (np.array([[1.0, np.nan]]), [0], "class 7: row 0 has length nan"),
        (np.array([[1.0, 0], [-1, 0]]), [0, 0], "class 7: the means of the subgroups: row 0 has length 0.0"),
        (np.empty((0, 3)), [], "class 7: features must be a table"),
    ],
)
def test_bad_features_are_refused_by_row(features, subgroups, message):
    with pytest.raises(ValueError, match=message):
        subgroup_centroids(features, subgroups, label="class 7")


def plain_walk(candidates, real, objective, choice):
    """The published loop: the whole objective for every trial."""
    choice, moved = list(choice), True
    while moved:
        moved = False
        for i, pool in enumerate(candidates):
            totals = [
                evaluate([*choice[:i], g, *choice[i + 1 :]], candidates, real, objective).total
                for g in range(len(pool))
            ]
            best = int(np.argmin(totals))
            if totals[best] < totals[choice[i]] - objective.tolerance(len(candidates)):
                choice[i], moved = best, True
    return choice


@pytest.mark.parametrize("tile", [64, 2])
@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_the_walk_ends_where_the_published_loop_ends_and_restarts_are_never_worse(
    objective, tile, monkeypatch
):
    monkeypatch.setattr(selection_walk, "TILE", tile)
    monkeypatch.setattr(selection_walk, "MOST_PAIRED", 0)
    for seed in range(4):
        candidates, real = instance(9, [3, 1, 4, 2, 5, 3, 3, 2, 4], seed=seed)
        (shard,) = make_shards(candidates, real, objective, 1)
        closest = [int(np.argmax(pool @ r)) for pool, r in zip(candidates, real, strict=True)]
        walked, _ = walk(candidates, shard.attractions(), closest, objective)
        assert walked.tolist() == plain_walk(candidates, real, objective, closest)
        found = select(candidates, real, objective)
        assert found.solver == "walk"
        assert found.choice.tolist() == walked.tolist()
        again = select(candidates, real, objective, restarts=5, num_shards=3)
        assert again.objective <= found.objective


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_no_joint_move_of_two_classes_improves_where_the_walk_ends(objective):
    better = 0
    for seed in range(6):
        candidates, real = instance(6, [3, 1, 4, 2, 3, 3], seed=seed, noise=3.0, width=6)
        (shard,) = make_shards(candidates, real, objective, 1)
        start = np.random.default_rng(seed).integers([len(c) for c in candidates])
        alone, _ = walk(candidates, shard.attractions(), start, objective)
        choice, _ = walk_pairs(candidates, shard.attractions(), start, objective)
        least = evaluate(choice, candidates, real, objective).total
        better += least < evaluate(alone, candidates, real, objective).total - 1e-9
        for i, j in itertools.combinations(range(6), 2):
            for g, h in itertools.product(range(len(candidates[i])), range(len(candidates[j]))):
                moved = choice.copy()
                moved[[i, j]] = g, h
                assert evaluate(moved, candidates, real, objective).total > least - 2 * objective.tolerance(6)
    assert better > 0  # single moves alone end above


def test_the_best_pair_gains_what_it_says():
    candidates, real = instance(5, 3, noise=3.0, width=6)
    objective = Objective(0.4, 0.9)
    (shard,) = make_shards(candidates, real, objective, 1)
    classes, choice = np.repeat(np.arange(5), 3), np.zeros(5, int)
    rows = np.concatenate(candidates).astype(float)
    logs = selection.log_distances(rows, rows, classes, classes, 0.0)
    g, h, gain = best_pair(logs, shard.attractions(), 3 * np.arange(5) + choice, classes, objective)
    moved = choice.copy()
    moved[[g // 3, h // 3]] = g % 3, h % 3
    before, after = (evaluate(c, candidates, real, objective).total for c in (choice, moved))
    assert before - after == pytest.approx(gain, abs=1e-9)
