"""S³: objective, rounds, walk, shards."""

import itertools

import numpy as np
import pytest
from selections import attractions_of, exhaustive, problem, split_here

from ims3_ray.method.s3 import descent, distributed_descent
from ims3_ray.method.s3 import objective as objectives
from ims3_ray.method.s3.objective import Objective, evaluate, real_centroid, subgroup_centroids
from ims3_ray.method.s3.proof.branch_and_bound import branch_and_bound
from ims3_ray.method.s3.shard import History, Moves, Shard, pick, split_classes

PAPER = Objective(0.4, 0.9)
VARIANTS = [Objective(0.4, 0.9, eps, name) for eps in (0.0, 0.1) for name in ("per_class", "none")]
MIXED = [3, 1, 4, 2, 5, 3, 3, 2, 4]


@pytest.fixture(autouse=True)
def small_problems_take_rounds_too(request, monkeypatch):
    if "walk" not in request.node.name:
        monkeypatch.setattr(distributed_descent, "MOST_VALUES", 0)


def assert_same(a, b):
    assert np.array_equal(a.choice, b.choice)
    assert (a.terms, a.rounds) == (b.terms, b.rounds)


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_the_objective_is_its_definition(objective, monkeypatch):
    monkeypatch.setattr(objectives, "BLOCK", 2)
    candidates, real = problem([3, 1, 4, 2, 3])
    choice, epsilon = np.array([2, 0, 3, 1, 0]), objective.epsilon
    chosen = pick(candidates, choice).astype(float)
    attraction = sum(np.log(1 - c @ r + epsilon) for c, r in zip(chosen, real.astype(float), strict=True))
    separation = sum(np.log(1 - a @ b + epsilon) for a, b in itertools.combinations(chosen, 2))
    weight = 0.9 if objective.normalization == "none" else 2 * 0.9 / 4
    terms = evaluate(choice, candidates, real, objective)
    assert terms.attraction == pytest.approx(attraction, rel=1e-12)
    assert terms.separation == pytest.approx(separation, rel=1e-12)
    assert terms.total == pytest.approx(0.4 * attraction - weight * separation, rel=1e-12)


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_no_single_swap_improves_a_selection(objective, noise):
    candidates, real = problem(np.arange(30) % 5 + 1, noise=noise)
    result = distributed_descent.select(candidates, real, objective)
    assert result.objective == evaluate(result.choice, candidates, real, objective).total
    for i, pool in enumerate(candidates):
        for g in range(len(pool)):
            swapped = result.choice.copy()
            swapped[i] = g
            total = evaluate(swapped, candidates, real, objective).total
            assert total > result.objective - 2 * objective.tolerance(30), (i, g)


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_ascent_never_beats_exhaustive_search_and_restarts_find_the_optimum(objective):
    for seed in range(5):
        candidates, real = problem([4, 3, 1, 4, 2, 4], seed, noise=2.0)
        _, best = exhaustive(candidates, real, objective)
        result = distributed_descent.select(candidates, real, objective, restarts=8)
        assert best.total <= result.objective + 1e-6 <= result.start + 2e-6
        if objective == PAPER:
            assert result.objective == pytest.approx(best.total, abs=1e-6)


def test_restarts_can_only_help():
    objective, gains = Objective(0.1, 0.9, normalization="none"), []
    for seed in range(4):
        candidates, real = problem([5] * 10, seed, noise=9.0, width=5)
        totals = [
            distributed_descent.select(candidates, real, objective, restarts=r).objective for r in (0, 1, 4)
        ]
        assert totals[0] >= totals[1] >= totals[2]
        gains.append(totals[0] - totals[2])
    assert max(gains) > 0.01


@pytest.mark.parametrize(("num_classes", "shards"), [(10, (2, 7, 16)), (130, (2, 3))])
@pytest.mark.parametrize("objective", VARIANTS[:2], ids=str)
def test_same_selection_for_any_number_of_shards(num_classes, shards, objective):
    candidates, real = problem(np.arange(num_classes) % 4 + 1, noise=3.0)
    single = distributed_descent.select(candidates, real, objective, restarts=1)
    for num_shards in shards:
        assert_same(
            single, distributed_descent.select(candidates, real, objective, restarts=1, num_shards=num_shards)
        )


def test_shards_cover_every_class_once():
    for num_classes, num_shards in itertools.product((1, 10, 100, 1000, 21841), (1, 2, 3, 7, 16)):
        ranges = split_classes(num_classes, num_shards)
        assert [i for ids in ranges for i in ids] == list(range(num_classes))
        assert len(ranges) == min(num_shards, num_classes)
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 16 + num_classes // 100


def test_a_rebuilt_shard_answers_the_same():
    candidates, real = problem([4] * 130, noise=3.0)
    objective = Objective(0.4, 0.9, normalization="none")

    def ask_anew(method, *arguments):
        """Every question meets new shards, and is asked twice."""
        ask = split_here(Shard, candidates, real, objective, 3)
        ask(method, *arguments)
        return ask(method, *arguments)

    whole = distributed_descent.select(candidates, real, objective)
    assert whole.rounds > 2
    assert_same(whole, distributed_descent.solve(distributed_descent.Joined(ask_anew), objective))


def test_a_shard_follows_moves_as_if_it_had_started_from_them():
    candidates, real = problem([4] * 100, noise=3.0)
    first = np.zeros(100, int)
    ids = np.flatnonzero(np.arange(100) % 3 == 0)[::-1]
    second = first.copy()
    second[ids] = 2
    centroids = pick(candidates, second)
    moves = Moves(ids, second[ids], np.zeros(len(ids)), np.zeros(len(ids)), centroids[ids])
    shard = Shard(0, candidates, real, PAPER, 100)
    start = History(first, pick(candidates, first))
    shard.propose(start, 0.0)
    stepped = shard.propose(History(first, start.centroids, (moves,)), 0.0)
    fresh = Shard(0, candidates, real, PAPER, 100).propose(History(second, centroids), 0.0)
    assert np.array_equal(stepped.classes, fresh.classes)
    assert np.array_equal(stepped.choice, fresh.choice)
    np.testing.assert_allclose(stepped.gains, fresh.gains, atol=1e-6)


@pytest.mark.parametrize("block", [256, 4])
def test_every_accepted_move_pays_after_the_ones_before_it(block, monkeypatch):
    """A class whose move pays only while another stays isn't moved with it, and larger gains come first."""
    monkeypatch.setattr(distributed_descent, "ACCEPT_BLOCK", block)
    candidates, real = problem([4] * 30, noise=3.0)
    objective = Objective(0.0, 0.9, normalization="none")
    for seed in range(5):
        choice = np.random.default_rng(seed).integers(4, size=30)
        centroids = pick(candidates, choice)
        proposals = Shard(0, candidates, real, objective, 30).propose(History(choice, centroids), 1e-6)
        shuffled = proposals.take(np.random.default_rng(1).permutation(len(proposals.gains)))
        moves = distributed_descent.accept(shuffled, centroids, objective, 1e-6)
        assert np.all(np.diff(moves.gains) <= 0)
        assert 0 < len(moves.classes) <= 30 // 4
        last = evaluate(choice, candidates, real, objective).total
        for i, g in zip(moves.classes, moves.choice, strict=True):
            choice[i] = g
            total = evaluate(choice, candidates, real, objective).total
            assert total < last
            last = total


def test_neither_the_order_of_classes_nor_doubled_candidates_change_what_is_chosen():
    candidates, real = problem([4] * 50)
    order = np.random.default_rng(0).permutation(50)
    choice = distributed_descent.select(candidates, real, PAPER).choice
    shuffled = distributed_descent.select([candidates[i] for i in order], real[order], PAPER)
    assert np.array_equal(shuffled.choice, choice[order])
    doubled = [np.concatenate([pool, pool]) for pool in candidates]  # ties go to the first
    assert np.array_equal(distributed_descent.select(doubled, real, PAPER).choice, choice)


def test_centroids_are_unit_length_means_of_unit_length_features():
    rng = np.random.default_rng(0)
    features, subgroups = rng.random((9, 5)) * 7, np.array([4, 1, 4, 1, 4, 1, 4, 9, 9])
    ids, centroids = subgroup_centroids(features, subgroups, label="class 7")
    assert ids.tolist() == [1, 4, 9]
    assert centroids.dtype == np.float32
    for g, centroid in zip(ids, centroids, strict=True):
        mean = np.mean([f / np.linalg.norm(f) for f in features[subgroups == g]], axis=0)
        np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(real_centroid(features[subgroups == 9], label="class 7"), centroids[2])


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
        (lambda c, r: (c, r * [[1], [1], [0], [1]]), "class 2: real centroid 2 must be finite and of unit"),
        (lambda c, r: ([*c[:3], np.concatenate([c[3], r[3:]])], r), "class 3 equals its real centroid"),
        (lambda c, r: ([c[0][:1], *c[1:3], c[0][:1]], r), "class 0 equals one of class 3"),
    ],
)
def test_bad_centroids_are_refused_by_class(broken, message):
    with pytest.raises(ValueError, match=message):
        distributed_descent.select(*broken(*problem([2] * 4)), PAPER)


@pytest.mark.parametrize("most_values", [distributed_descent.MOST_VALUES, 0])
def test_coinciding_centroids_that_are_not_chosen_are_fine(most_values, monkeypatch):
    """Class 3 shares both of its candidates with class 0: a choice that keeps them apart is the best one."""
    monkeypatch.setattr(distributed_descent, "MOST_VALUES", most_values)
    candidates, real = problem([2] * 4)
    candidates = [*candidates[:3], candidates[0]]
    choice = distributed_descent.select(candidates, real, PAPER, restarts=4).choice
    assert choice[0] != choice[3]
    totals = {
        trial: evaluate(np.array(trial), candidates, real, PAPER).total
        for trial in itertools.product(range(2), repeat=4)
        if trial[0] != trial[3]
    }
    assert tuple(branch_and_bound(candidates, real, PAPER).choice) == min(totals, key=totals.get)
    with pytest.raises(ValueError, match="class 0 equals one of class 3"):
        evaluate(np.zeros(4, int), candidates, real, PAPER)


def test_coinciding_centroids_are_fine_with_epsilon():
    candidates, real = problem([2] * 4)
    result = distributed_descent.select(
        [*candidates[:3], candidates[0]], real, Objective(0.4, 0.9, epsilon=1e-3)
    )
    assert np.isfinite(result.objective)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[1.0, 0], [0, 0]], "class 7: row 1 has length 0.0"),
        ([[1.0, np.nan]], "class 7: row 0 has length nan"),
        ([[1.0, 0], [-1, 0]], "class 7: the means of the subgroups: row 0 has length 0.0"),
        (np.empty((0, 3)), "class 7: features must be a table"),
    ],
)
def test_bad_features_are_refused_by_row(features, message):
    with pytest.raises(ValueError, match=message):
        real_centroid(np.array(features), label="class 7")


def plain_walk(candidates, real, objective, choice):
    """The published loop: the whole objective for every trial."""
    choice, moved = choice.copy(), True
    while moved:
        moved = False
        for i, pool in enumerate(candidates):
            trials = np.tile(choice, (len(pool), 1))
            trials[:, i] = np.arange(len(pool))
            totals = [evaluate(trial, candidates, real, objective).total for trial in trials]
            best = int(np.argmin(totals))
            if totals[best] < totals[choice[i]] - objective.tolerance(len(candidates)):
                choice[i], moved = best, True
    return choice


@pytest.mark.parametrize("tile", [64, 2])
@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_the_walk_ends_where_the_published_loop_ends_and_restarts_are_never_worse(
    objective, tile, monkeypatch
):
    monkeypatch.setattr(descent, "TILE", tile)
    monkeypatch.setattr(descent, "MOST_PAIRED", 0)
    for seed in range(3):
        candidates, real = problem(MIXED, seed=seed)
        closest = np.array([np.argmax(pool @ r) for pool, r in zip(candidates, real, strict=True)])
        choice, _ = descent.walk(candidates, attractions_of(candidates, real, objective), closest, objective)
        assert np.array_equal(choice, plain_walk(candidates, real, objective, closest))
        selection = distributed_descent.select(candidates, real, objective)
        assert selection.solver == "walk"
        assert np.array_equal(selection.choice, choice)
        again = distributed_descent.select(candidates, real, objective, restarts=5, num_shards=3)
        assert again.objective <= selection.objective


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_no_joint_move_of_two_classes_improves_where_the_walk_ends(objective):
    better = 0
    for seed in range(4):
        candidates, real = problem([3, 1, 4, 2, 3, 3], seed=seed, noise=3.0, width=6)
        attractions = attractions_of(candidates, real, objective)
        start = np.random.default_rng(seed).integers([len(c) for c in candidates])
        alone, _ = descent.walk(candidates, attractions, start, objective)
        choice, _ = descent.walk_pairs(candidates, attractions, start, objective)
        least = evaluate(choice, candidates, real, objective).total
        better += least < evaluate(alone, candidates, real, objective).total - 1e-9
        for i, j in itertools.combinations(range(6), 2):
            for g, h in itertools.product(range(len(candidates[i])), range(len(candidates[j]))):
                moved = choice.copy()
                moved[[i, j]] = g, h
                assert evaluate(moved, candidates, real, objective).total > least - 2 * objective.tolerance(6)
    assert better > 0  # single moves alone end above
