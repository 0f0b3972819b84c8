"""S³: the objective, both descents, shards, and selection from features."""

import itertools

import numpy as np
import pytest
import torch
from selections import LocalShards, attractions_of, exhaustive, problem, split_here

import ims3_ray
from ims3_ray.method.s3 import descent, distributed_descent
from ims3_ray.method.s3 import objective as objectives
from ims3_ray.method.s3.branch_and_bound import branch_and_bound
from ims3_ray.method.s3.distributed_descent import accept, select_centroids, solve
from ims3_ray.method.s3.objective import Objective, evaluate, pick, real_centroid, subgroup_centroids
from ims3_ray.method.s3.shard import History, Shard, split_classes

PAPER = Objective(0.4, 0.9)
VARIANTS = [Objective(0.4, 0.9, eps, name) for eps in (0.0, 0.1) for name in ("per_class", "none")]
each_objective = pytest.mark.parametrize("objective", VARIANTS, ids=str)
MIXED = [3, 1, 4, 2, 5, 3, 3, 2, 4]


@pytest.fixture(autouse=True)
def rounds_for_small_problems_too(request, monkeypatch):
    if "walk" not in request.node.name:
        monkeypatch.setattr(distributed_descent, "MAX_TABLE_VALUES", 0)


def assert_same(a, b):
    assert np.array_equal(a.choice, b.choice)
    assert (a.terms, a.rounds) == (b.terms, b.rounds)


@each_objective
def test_the_objective_matches_its_definition(objective, monkeypatch):
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


@each_objective
@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_no_single_swap_improves_a_selection(objective, noise):
    candidates, real = problem(np.arange(30) % 5 + 1, noise=noise)
    result = select_centroids(candidates, real, objective)
    assert result.objective == evaluate(result.choice, candidates, real, objective).total
    for i, g in ((i, g) for i, pool in enumerate(candidates) for g in range(len(pool))):
        swapped = result.choice.copy()
        swapped[i] = g
        total = evaluate(swapped, candidates, real, objective).total
        assert total > result.objective - 2 * objective.tolerance(30), (i, g)


@each_objective
def test_descent_never_beats_exhaustive_search_and_restarts_find_the_optimum(objective):
    for seed in range(5):
        candidates, real = problem([4, 3, 1, 4, 2, 4], seed, noise=2.0)
        _, best = exhaustive(candidates, real, objective)
        result = select_centroids(candidates, real, objective, restarts=8)
        assert best.total <= result.objective + 1e-6 <= result.start + 2e-6
        if objective == PAPER:
            assert result.objective == pytest.approx(best.total, abs=1e-6)


@pytest.mark.parametrize(("num_classes", "shards"), [(10, (2, 7, 16)), (130, (2, 3))])
@pytest.mark.parametrize("objective", VARIANTS[:2], ids=str)
def test_same_selection_for_any_number_of_shards(num_classes, shards, objective):
    classes = problem(np.arange(num_classes) % 4 + 1, noise=3.0)
    single = select_centroids(*classes, objective, restarts=1)
    for count in shards:
        split = LocalShards(split_here(Shard, *classes, objective, count))
        assert_same(single, solve(split, objective, restarts=1))


def test_shards_cover_every_class_once():
    for num_classes, num_shards in itertools.product((1, 10, 100, 1000, 21841), (1, 2, 3, 7, 16)):
        ranges = split_classes(num_classes, num_shards)
        assert [i for ids in ranges for i in ids] == list(range(num_classes))
        assert len(ranges) == min(num_shards, num_classes)
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 16 + num_classes // 100


def test_a_rebuilt_shard_returns_the_same():
    candidates, real = problem([4] * 130, noise=3.0)
    objective = Objective(0.4, 0.9, normalization="none")

    class RebuiltShards:
        """Each call meets new shards, and is made twice."""

        def __getattr__(self, name):
            call = getattr(LocalShards(split_here(Shard, candidates, real, objective, 3)), name)
            return lambda *arguments: (call(*arguments), call(*arguments))[1]

    whole = select_centroids(candidates, real, objective)
    assert whole.rounds > 2
    assert_same(whole, solve(RebuiltShards(), objective))


@pytest.mark.parametrize("block", [256, 4])
def test_every_accepted_move_pays_after_the_ones_before_it(block, monkeypatch):
    """A move that pays only while another class stays is not accepted with it; larger gains come first."""
    monkeypatch.setattr(distributed_descent, "ACCEPT_BLOCK", block)
    candidates, real = problem([4] * 30, noise=3.0)
    objective = Objective(0.0, 0.9, normalization="none")
    for seed in range(5):
        choice = np.random.default_rng(seed).integers(4, size=30)
        centroids = pick(candidates, choice)
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


def test_order_of_classes_and_duplicate_candidates_do_not_change_the_choice():
    candidates, real = problem([4] * 50)
    order = np.random.default_rng(0).permutation(50)
    choice = select_centroids(candidates, real, PAPER).choice
    shuffled = select_centroids([candidates[i] for i in order], real[order], PAPER)
    assert np.array_equal(shuffled.choice, choice[order])
    doubled = [np.concatenate([pool, pool]) for pool in candidates]  # ties go to the first
    assert np.array_equal(select_centroids(doubled, real, PAPER).choice, choice)


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
    ("broken", "words"),
    [
        (lambda c, r: (c[:3], r), "one centroid per class"),
        (lambda c, r: ([*c[:3], c[3][:, :7]], r), "class 3.* 7 .*24"),
        (lambda c, r: ([*c[:2], c[2][:0], c[3]], r), "class 2.*one candidate"),
        (lambda c, r: ([*c[:2], c[2] * np.nan, c[3]], r), "class 2.*candidate.* 0 must be finite"),
        (lambda c, r: (c, r * [[1], [1], [0], [1]]), "class 2.*real.*unit"),
        (lambda c, r: ([*c[:3], np.concatenate([c[3], r[3:]])], r), "class 3 equals its real"),
        (lambda c, r: ([c[0][:1], *c[1:3], c[0][:1]], r), "class 0 equals .*class 3"),
    ],
)
def test_bad_centroids_are_refused_by_class(broken, words):
    with pytest.raises(ValueError, match=words):
        select_centroids(*broken(*problem([2] * 4)), PAPER)


@pytest.mark.parametrize("max_values", [distributed_descent.MAX_TABLE_VALUES, 0])
def test_centroids_may_coincide_unless_both_are_chosen_without_epsilon(max_values, monkeypatch):
    """Class 3 has the candidates of class 0: the best choice keeps the two classes apart."""
    monkeypatch.setattr(distributed_descent, "MAX_TABLE_VALUES", max_values)
    candidates, real = problem([2] * 4)
    candidates = [*candidates[:3], candidates[0]]
    choice = select_centroids(candidates, real, PAPER, restarts=4).choice
    assert choice[0] != choice[3]
    trials = [np.array(t) for t in itertools.product(range(2), repeat=4) if t[0] != t[3]]
    best = min(trials, key=lambda trial: evaluate(trial, candidates, real, PAPER).total)
    assert np.array_equal(branch_and_bound(candidates, real, PAPER).choice, best)
    with pytest.raises(ValueError, match=r"class 0 equals .*class 3"):
        evaluate(np.zeros(4, int), candidates, real, PAPER)
    assert np.isfinite(evaluate(np.zeros(4, int), candidates, real, Objective(0.4, 0)).total)
    at_real = [candidates[0], np.stack([real[1], -real[1]])], real[:2]  # class 1 may choose its real centroid
    assert np.isfinite(evaluate(np.zeros(2, int), *at_real, Objective(0, 0.9)).total)
    assert np.isfinite(branch_and_bound(*at_real, Objective(0, 0.9)).objective)
    assert np.isfinite(select_centroids(candidates, real, Objective(0.4, 0.9, epsilon=1e-3)).objective)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([[1.0, 0], [0, 0]], "class 7: row 1 .*0.0"),
        ([[1.0, np.nan]], "class 7: row 0 .*nan"),
        ([[1.0, 0], [-1, 0]], "class 7: .*means.* row 0 .*0.0"),
        (np.empty((0, 3)), "class 7: .*table"),
    ],
)
def test_bad_features_are_refused_by_row(features, words):
    with pytest.raises(ValueError, match=words):
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
@each_objective
def test_the_walk_ends_at_the_choice_of_the_published_loop(objective, tile, monkeypatch):
    monkeypatch.setattr(descent, "TILE", tile)
    monkeypatch.setattr(descent, "MAX_PAIRED", 0)
    for seed in range(3):
        candidates, real = problem(MIXED, seed=seed)
        closest = np.array([np.argmax(pool @ r) for pool, r in zip(candidates, real, strict=True)])
        choice, _ = descent.walk(candidates, attractions_of(candidates, real, objective), closest, objective)
        assert np.array_equal(choice, plain_walk(candidates, real, objective, closest))
        selection = select_centroids(candidates, real, objective)
        assert selection.solver == "walk"
        assert np.array_equal(selection.choice, choice)


@each_objective
def test_no_joint_move_of_two_classes_improves_the_walk_in_pairs(objective):
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


def class_features(num_classes=6, num_subgroups=4):
    """Candidates (C, G, K, D) and real images (C, M, D)."""
    rng = np.random.default_rng(0)
    centres = rng.random((num_classes, 1, 16)) + 0.2
    candidates = centres[:, None] + 0.3 * rng.standard_normal((num_classes, num_subgroups, 3, 16))
    return candidates, centres + 0.2 * rng.standard_normal((num_classes, 9, 16))


def test_select_finds_the_best_subgroups_by_walk_and_proves_them():
    candidates, real = class_features()
    selection = ims3_ray.select(candidates, real)
    pools = [subgroup_centroids(c.reshape(12, 16), np.arange(12) // 3, label="")[1] for c in candidates]
    choice, best = exhaustive(pools, np.stack([real_centroid(r, label="") for r in real]), PAPER)
    assert (selection.solver, selection.gap) == ("exact", 0)
    assert np.array_equal(selection.choice, choice)
    assert selection.objective == pytest.approx(best.total, abs=1e-9)
    walked = ims3_ray.select(candidates, real, solver="rounds")
    assert (walked.solver, walked.objective) == ("walk", pytest.approx(best.total, abs=1e-6))


def test_select_takes_arrays_tensors_lists_and_ragged_classes():
    candidates, real = class_features()
    expected = ims3_ray.select(candidates, real, lower_bound="none").choice.tolist()
    tensors = [torch.from_numpy(c).requires_grad_() for c in candidates], [torch.from_numpy(r) for r in real]
    lists = [[group.tolist() for group in groups] for groups in candidates], [r.tolist() for r in real]
    for features in (tensors, lists):
        assert ims3_ray.select(*features, lower_bound="none").choice.tolist() == expected
    ragged = [list(groups[: i + 1]) for i, groups in enumerate(candidates)]
    ragged[5][1] = ragged[5][1][:2]
    assert ims3_ray.select(ragged, real).choice[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c, r: (c[:3], r), "real: 6 .*candidates: 3"),
        (lambda c, r: ([*c[:3], c[3][..., :7], *c[4:]], r), r"class 3: .*\(3, 7\)"),
        (lambda c, r: ([*c[:3], [], *c[4:]], r), "class 3: no subgroup"),
        (lambda c, r: (c, [r[0] * np.nan, *r[1:]]), "real.*class 0: row 0"),
    ],
)
def test_select_names_the_class_of_bad_features(change, words):
    with pytest.raises(ValueError, match=words):
        ims3_ray.select(*change(*map(list, class_features())))
