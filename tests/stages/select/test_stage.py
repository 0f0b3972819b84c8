"""S³ on the actor pool: the same selection as the plain call, killed actors, memory, tables of features."""

import os
import signal
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from selections import IPC, WIDTH, exhaustive, feature_tables, write_feature_tables

from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.sections import Select
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.method.s3 import distributed_descent
from ims3_ray.method.s3.objective import Objective, real_centroid, subgroup_centroids
from ims3_ray.stages.select.candidates import SelectionInput, open_candidates, open_features
from ims3_ray.stages.select.run_selection import select_features
from ims3_ray.stages.select.shard_actors import ActorShards, ShardPool, check_bound, split
from ims3_ray.storage.artifacts import complete, open_directory
from ims3_ray.storage.rows import pack_part_keys, write_index
from ims3_ray.storage.schemas import CANDIDATES, FEATURES, to_parquet

SETTINGS = Select(restarts=1, real_images=None, solver="rounds")
NAMES = tuple("abcdefghi")


def opened(folder, candidates, real, **options):
    files = write_feature_tables(folder, candidates, real, **options)
    return open_candidates(*files, ("--candidates", "--real"))


def selected(pool, shards=1, ipc=IPC, **changes):
    settings, machine = SETTINGS.model_copy(update=changes), find_machine(Workers(shards=shards))
    return select_features(pool, settings, ipc=ipc, seed=0, machine=machine)


def selection_input(pool, **changes):
    return SelectionInput(pool, NAMES, SETTINGS.model_copy(update=changes), IPC, 0)


def centroids(candidates, real):
    groups = [
        subgroup_centroids(np.float32([f for *_, f in rows]), np.array([g for g, *_ in rows]), label="")[1]
        for rows in candidates.values()
    ]
    return groups, np.stack([real_centroid(rows.astype(np.float32), label="") for rows in real.values()])


@pytest.mark.parametrize(("solver", "shards"), [("walk", 2), ("rounds", 6)])  # 6: more than the CPUs
def test_actors_select_what_the_plain_call_selects(ray_cluster, tmp_path, monkeypatch, solver, shards):
    if solver == "rounds":
        monkeypatch.setattr(distributed_descent, "MAX_TABLE_VALUES", 0)
    tables = feature_tables(9)
    plain = distributed_descent.select_centroids(*centroids(*tables), Objective(0.4, 0.9), restarts=1)
    outcome = selected(opened(tmp_path, *tables), shards=shards)
    assert outcome.shards == shards
    assert outcome.document["solver"] == solver
    assert list(outcome.document["selection"].values()) == plain.choice.tolist()
    assert outcome.document["objective"] == plain.objective


def test_order_and_number_of_files_do_not_change_a_selection(ray_cluster, tmp_path):
    tables = feature_tables(4)
    whole = selected(opened(tmp_path / "whole", *tables)).document
    write_feature_tables(tmp_path / "parts", *tables, shuffled=True, files=3)
    (tmp_path / "parts" / "real.parquet").rename(tmp_path / "real.parquet")
    files = str(tmp_path / "parts"), str(tmp_path / "real.parquet")
    assert selected(open_candidates(*files, ("--candidates", "--real"))).document == whole


@pytest.mark.slow
def test_actors_killed_in_a_round_are_rebuilt_and_the_selection_is_the_same(
    ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(distributed_descent, "MAX_TABLE_VALUES", 0)
    source = selection_input(opened(tmp_path, *feature_tables(9)))
    pool = ShardPool(source, find_machine(Workers(shards=3)))
    shards, submit, killed = ActorShards(pool), pool.submit, []

    def submit_and_kill(function):
        pids = ray.get(submit(lambda _: os.getpid()))
        answers = submit(function)
        if "propose" in function.__code__.co_names and len(killed) < 2:
            os.kill(pids[len(killed)], signal.SIGKILL)
            killed.append(pids[len(killed)])
        return answers

    monkeypatch.setattr(pool, "submit", submit_and_kill)
    disturbed = distributed_descent.solve(shards, source.objective, restarts=3)
    assert len(killed) == 2
    monkeypatch.setattr(pool, "submit", submit)
    assert not set(pool.each(lambda _: os.getpid())) & set(killed)
    undisturbed = distributed_descent.solve(shards, source.objective, restarts=3)
    assert np.array_equal(disturbed.choice, undisturbed.choice)
    assert disturbed.terms == undisturbed.terms


@pytest.mark.parametrize(
    ("lower_bound", "solver", "certificate"),
    [("auto", "exact", "exact"), ("series", "walk", "series"), ("none", "walk", "none")],
)
def test_small_problems_are_solved_exactly_unless_lower_bound_is_set(
    ray_cluster, tmp_path, lower_bound, solver, certificate
):
    tables = feature_tables(5, seed=3)
    document = selected(opened(tmp_path, *tables), solver="auto", lower_bound=lower_bound).document
    best, terms = exhaustive(*centroids(*tables), Objective(0.4, 0.9))
    assert (document["solver"], document["certificate"]) == (solver, certificate)
    if certificate == "exact":
        assert list(document["selection"].values()) == best.tolist()
        assert document["gap"] == 0
        assert document["objective"] == pytest.approx(terms.total, abs=1e-12)
    elif certificate == "series":
        assert document["lower_bound"] <= terms.total + 1e-12


@pytest.mark.slow
def test_single_images_are_never_worse_than_the_best_subgroups(ray_cluster, tmp_path):
    pool = opened(tmp_path, *feature_tables(4, seed=5))
    settings = {"unit": "image", "coverage": 0.3}
    document = selected(pool, **settings).document
    assert document["objective"] <= document["subgroup_selection"]["objective"] + 1e-12
    assert document["terms"]["coverage"] > 0
    for places in document["selection"].values():
        assert len({tuple(place) for place in places}) == IPC
        assert all(0 <= g < 4 and 0 <= k < IPC for g, k in places)
    assert selected(pool, shards=2, **settings).document == document


def test_exclude_copies_drops_candidates_that_copy_real_images(ray_cluster, tmp_path):
    candidates, real = feature_tables(4, seed=5)
    for name, rows in candidates.items():
        for g in range(4):  # the first image of every subgroup is a real one, and the best there is
            rows[g * IPC] = (g, 0, real[name][g])
    pool = opened(tmp_path, candidates, real)
    images = {"unit": "image", "exclude_copies": True}
    with_copies = selected(pool, unit="image").document["selection"]
    without = selected(pool, **images).document["selection"]
    assert any(k == 0 for places in with_copies.values() for _, k in places)
    assert all(k != 0 for places in without.values() for _, k in places)
    with pytest.raises(InputError, match=r"select.exclude_copies: .* ipc needs 9"):
        selected(pool, ipc=9, **images)


def test_features_of_a_subgroup_that_cancel_out_are_bad_input(ray_cluster, tmp_path):
    candidates, real = feature_tables(4, seed=5)
    name, rows = next(iter(candidates.items()))
    (*_, feature), others = rows[0], rows[IPC:]
    candidates[name] = [(0, 0, feature), (0, 1, -feature), *others]
    with pytest.raises(InputError, match="'class-00': the means of the subgroups: row 0"):
        selected(opened(tmp_path, candidates, real))


def test_a_larger_weight_of_coverage_gives_more_coverage(ray_cluster, tmp_path):
    pool = opened(tmp_path, *feature_tables(4, seed=5))
    low, high = (
        selected(pool, unit="image", coverage=weight).document["terms"]["coverage"]
        for weight in (0.01, 100.0)
    )
    assert high > low


def test_memory_decides_the_number_of_shards_and_the_rows_per_read(tmp_path):
    pool = opened(tmp_path, *feature_tables(9))
    shards, rows = split(selection_input(pool, memory_gb=2.5), 2)
    assert shards == 2
    assert rows > 1e6
    large = replace(pool, num_subgroups=np.full(9, 10_000_000))
    assert split(selection_input(large, memory_gb=1.5), 2)[0] > 2
    covered = {"unit": "image", "coverage": 0.3, "memory_gb": 2.5}
    many = replace(
        pool, num_images=np.full(9, 6000), real=replace(pool.real, counts=dict.fromkeys(pool.classes, 10_000))
    )
    assert split(selection_input(many, **covered | {"coverage": 0.0}), 2)[0] == 2
    assert split(selection_input(many, **covered), 2)[0] > 2
    with pytest.raises(InputError, match=r"select.memory_gb: 0.3 GB .* set 0\.5"):
        split(selection_input(pool, memory_gb=0.3), 2)
    names = [f"class-{i:02d}" for i in range(9)]
    whole, portions = (list(pool.candidates.read(names, limit)) for limit in (None, 15))
    for (keys, vectors), (same_keys, same_vectors) in zip(whole, portions, strict=True):
        assert np.array_equal(vectors, same_vectors)
        assert np.array_equal(keys["index"], same_keys["index"])


def test_the_lower_bound_needs_its_memory_and_has_a_maximum_size(tmp_path):
    pool = opened(tmp_path, *feature_tables(9))

    def check(subgroups, **settings):
        check_bound(selection_input(replace(pool, num_subgroups=np.full(9, subgroups)), **settings))

    with pytest.raises(InputError, match=r"select.memory_gb: 0.6 GB .* 0\.8, or select.lower_bound=series"):
        check(1000, memory_gb=0.6)
    check(1000, memory_gb=0.8)
    check(1000, memory_gb=0.6, lower_bound="series")
    check(2000, memory_gb=0.6)
    with pytest.raises(InputError, match=r"select.lower_bound: trws .* 10000 .* 9 × 2000; use series"):
        check(2000, lower_bound="trws")


def test_a_class_of_an_indexed_artefact_is_read_from_its_own_files_only(tmp_path):
    artefacts = []
    for noun, table in (("candidates", CANDIDATES), ("features", FEATURES)):
        out = open_directory(str(tmp_path / noun))
        for label in range(3):
            columns = {"label": np.full(4, label), "feature": np.full((4, WIDTH), label + 1, np.float32)}
            columns |= {name: np.arange(4) for name in ("subgroup", "index", "seed")}
            columns |= {"image_id": np.array(["x"] * 4, object), "image": np.array([b"x"] * 4, object)}
            data = to_parquet({name: columns[name] for name in table}, table)
            out.write(f"part-{label:05d}.parquet", data)
        write_index(out, {name: pack_part_keys(out.read(name), table) for name in out.files()})
        complete(out, {"rows": 12})
        artefacts.append(out)
    pool = open_candidates(*artefacts, ("candidates", "features"), subgroup=3)
    for table, rows in ((pool.candidates, 3), (pool.real, 4)):
        (table.directory / "part-00001.parquet").delete()
        (_, first), (_, last) = table.read([0, 2], limit=4)
        assert (first.tolist(), last.tolist()) == ([[1.0] * WIDTH] * rows, [[3.0] * WIDTH] * rows)
        with pytest.raises(InputError, match="part-00001"):
            list(table.read([1]))


@pytest.mark.parametrize("kind", ["fixed", "tensor", "double", "label"])
def test_features_are_read_from_every_kind_of_list(tmp_path, kind):
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    column = {
        "fixed": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 4),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(vectors),
        "double": pa.array(vectors.astype(float).tolist()),
        "label": pa.array(vectors.tolist(), pa.large_list(pa.float32())),
    }[kind]
    name = "label" if kind == "label" else "class"
    pq.write_table(pa.table({name: [7, 3, 7], "feature": column}), tmp_path / "real.parquet")
    table = open_features(str(tmp_path / "real.parquet"), "--real", ())
    assert table.index()[0] == [3, 7]
    assert table.width == 4
    (_, three), (_, seven) = table.read([3, 7])
    assert np.array_equal(three, vectors[[1]])
    assert np.array_equal(seven, vectors[[0, 2]])
