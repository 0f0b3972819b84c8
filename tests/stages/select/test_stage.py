"""S³ on the actor pool: any tables, any number of shards, killed actors, bad input."""

import itertools
import json
import os
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from printed import next_commands
from selections import exhaustive

from ims3_ray.cli import run_command
from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.sections import Select
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.method.s3 import distributed_descent as selection_rounds
from ims3_ray.method.s3.distributed_descent import Joined, select, solve
from ims3_ray.method.s3.objective import Objective, real_centroid, subgroup_centroids
from ims3_ray.method.s3.shard import Shard
from ims3_ray.stages.select.candidates import open_candidates, open_features
from ims3_ray.stages.select.run_selection import select_features
from ims3_ray.stages.select.shard_actors import (
    ClassRange,
    ShardPool,
    Source,
    check_bound,
    of_groups,
    of_itself,
    split,
)
from ims3_ray.storage.artifacts import complete, open_directory
from ims3_ray.storage.rows import pack_part_keys, write_index
from ims3_ray.storage.schemas import CANDIDATES, FEATURES, to_parquet

WIDTH, IPC = 8, 3
SETTINGS = Select(restarts=1, real_images=None, solver="rounds")


def features(num_classes, seed=0, subgroups=4, ipc=IPC):
    """{class name: (subgroup, index, feature) rows} of candidates, and {class name: rows} of real images."""
    rng = np.random.default_rng(seed)
    names = [f"class-{i:02d}" for i in range(num_classes)]
    centres = rng.random((num_classes, WIDTH)) + 0.2
    keys = list(itertools.product(range(subgroups), range(ipc)))
    candidates = {
        name: [(g, k, np.abs(c + 0.3 * rng.standard_normal(WIDTH))) for g, k in keys]
        for name, c in zip(names, centres, strict=True)
    }
    real = {
        name: np.abs(c + 0.2 * rng.standard_normal((8, WIDTH)))
        for name, c in zip(names, centres, strict=True)
    }
    return candidates, real


def write(folder, candidates, real, *, shuffled=False, files=1):
    """Both tables as Parquet; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(name, *row) for name, of_class in candidates.items() for row in of_class]
    if shuffled:
        rows = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    for number in range(files):
        part = rows[number::files]
        columns = {
            "class": [r[0] for r in part],
            "subgroup": [r[1] for r in part],
            "index": [r[2] for r in part],
        }
        vectors = pa.array([np.asarray(r[3], np.float32).tolist() for r in part], pa.list_(pa.float32()))
        pq.write_table(
            pa.table(columns | {"feature": vectors}),
            folder / f"candidates-{number}.parquet",
            row_group_size=7,
        )
    names = [name for name, of_class in real.items() for _ in of_class]
    vectors = pa.array([row.astype(np.float32).tolist() for of_class in real.values() for row in of_class])
    pq.write_table(pa.table({"class": names, "feature": vectors}), folder / "real.parquet")
    return str(folder / "candidates-0.parquet"), str(folder / "real.parquet")


def opened(folder, candidates, real, **options):
    return open_candidates(*write(folder, candidates, real, **options), ("--candidates", "--real"))


def chosen(pool, settings=SETTINGS, shards=1, **changes):
    machine = find_machine(Workers(shards=shards))
    return select_features(pool, settings.model_copy(update=changes), ipc=IPC, seed=0, machine=machine)


def centroids(candidates, real):
    groups = [
        subgroup_centroids(np.float32([f for *_, f in rows]), np.array([g for g, *_ in rows]), label="")[1]
        for rows in candidates.values()
    ]
    return groups, np.stack([real_centroid(rows.astype(np.float32), label="") for rows in real.values()])


@pytest.mark.parametrize("solver", ["walk", "rounds"])
def test_ray_gives_what_the_plain_call_gives_for_any_number_of_shards(
    ray_cluster, tmp_path, monkeypatch, solver
):
    if solver == "rounds":
        monkeypatch.setattr(selection_rounds, "MOST_VALUES", 0)
    tables = features(9)
    pool = opened(tmp_path, *tables)
    plain = select(*centroids(*tables), Objective(0.4, 0.9), restarts=1)
    most = 6 if solver == "rounds" else 2  # 6: more than the cluster has CPUs
    for shards in (1, most):
        of_ray = chosen(pool, shards=shards)
        assert of_ray.shards == shards
        assert of_ray.document["solver"] == solver
        assert list(of_ray.document["selection"].values()) == plain.choice.tolist()
        assert of_ray.document["objective"] == plain.objective


def test_order_and_number_of_files_change_nothing(ray_cluster, tmp_path):
    tables = features(4)
    whole = chosen(opened(tmp_path / "whole", *tables)).document
    write(tmp_path / "parts", *tables, shuffled=True, files=3)
    (tmp_path / "parts" / "real.parquet").rename(tmp_path / "real.parquet")
    parts = open_candidates(
        str(tmp_path / "parts"), str(tmp_path / "real.parquet"), ("--candidates", "--real")
    )
    assert chosen(parts).document == whole


@pytest.mark.slow
def test_an_actor_killed_in_mid_round_is_rebuilt_and_the_selection_is_the_same(
    ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(selection_rounds, "MOST_VALUES", 0)
    source = Source(opened(tmp_path, *features(9)), tuple(map(str, range(9))), SETTINGS, IPC, 0)
    pool = ShardPool(source, find_machine(Workers(shards=3)))
    submit, killed = pool.submit, []

    def submit_and_kill(part, method, *arguments):
        pids = [pid for pid, _ in ray.get(submit(of_itself, ClassRange.process))]
        answers = submit(part, method, *arguments)
        if method is Shard.propose and len(killed) < 2:
            os.kill(pids[len(killed)], signal.SIGKILL)
            killed.append(pids[len(killed)])
        return answers

    groups = Joined(pool.asking(of_groups))
    monkeypatch.setattr(pool, "submit", submit_and_kill)
    disturbed = solve(groups, source.objective, restarts=3)
    assert len(killed) == 2
    monkeypatch.setattr(pool, "submit", submit)
    assert not {pid for pid, _ in pool.ask(ClassRange.process)} & set(killed)
    undisturbed = solve(groups, source.objective, restarts=3)
    assert np.array_equal(disturbed.choice, undisturbed.choice)
    assert disturbed.terms == undisturbed.terms


@pytest.mark.parametrize(
    ("settings", "solver", "certificate"),
    [
        ({"solver": "auto"}, "exact", "exact"),
        ({"solver": "exact"}, "exact", "exact"),
        ({"solver": "auto", "lower_bound": "series"}, "walk", "series"),
        ({"solver": "auto", "lower_bound": "none"}, "walk", "none"),
    ],
)
def test_small_problems_are_proved_unless_another_certificate_is_asked_for(
    ray_cluster, tmp_path, settings, solver, certificate
):
    tables = features(5, seed=3)
    document = chosen(opened(tmp_path, *tables), shards=1, **settings).document
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
    pool = opened(tmp_path, *features(4, seed=5))
    one = chosen(pool, unit="image", coverage=0.3, coverage_neighbours=2)
    document = one.document
    assert document["objective"] <= document["subgroup_selection"]["objective"] + 1e-12
    assert document["terms"]["coverage"] > 0
    for places in document["selection"].values():
        assert len({tuple(place) for place in places}) == IPC
        assert all(0 <= g < 4 and 0 <= k < IPC for g, k in places)
    assert chosen(pool, shards=2, unit="image", coverage=0.3, coverage_neighbours=2).document == document


def test_copies_of_real_images_are_left_out_where_that_is_asked_for(ray_cluster, tmp_path):
    candidates, real = features(4, seed=5)
    # the first of every subgroup is a real image, and the best there is
    for name, of_class in candidates.items():
        for g in range(4):
            of_class[g * IPC] = (g, 0, real[name][g])
    pool = opened(tmp_path, candidates, real)
    free, without = (
        chosen(pool, unit="image", exclude_copies=copies).document["selection"] for copies in (False, True)
    )
    assert any(k == 0 for places in free.values() for _, k in places)
    assert all(k != 0 for places in without.values() for _, k in places)
    settings = SETTINGS.model_copy(update={"unit": "image", "exclude_copies": True})
    with pytest.raises(
        InputError, match=r"select.exclude_copies: .* candidates that copy no real image, ipc needs 9"
    ):
        select_features(pool, settings, ipc=9, seed=0, machine=find_machine(Workers(shards=1)))


def test_closeness_to_real_images_grows_with_its_weight(ray_cluster, tmp_path):
    pool = opened(tmp_path, *features(4, seed=5))
    terms = [
        chosen(pool, unit="image", coverage_by="distance", coverage=weight).document["terms"]
        for weight in (0.01, 100.0)
    ]
    assert terms[1]["coverage"] > terms[0]["coverage"]


def test_memory_decides_the_number_of_shards_and_of_rows_read_at_once(tmp_path):
    pool = opened(tmp_path, *features(9))

    def of(memory):
        return Source(
            pool, tuple(map(str, range(9))), SETTINGS.model_copy(update={"memory_gb": memory}), IPC, 0
        )

    shards, rows = split(of(2.5), 2)
    assert shards == 2
    assert rows > 1e6
    with pytest.raises(InputError, match=r"select.memory_gb: 0.3 GB per actor is too little; set 0\.5"):
        split(of(0.3), 2)
    table = pool.candidates
    wanted = [f"class-{i:02d}" for i in range(9)]
    whole, portions = (list(table.read(wanted, limit)) for limit in (None, 15))
    for (keys, vectors), (same_keys, same_vectors) in zip(whole, portions, strict=True):
        assert np.array_equal(vectors, same_vectors)
        assert np.array_equal(keys["index"], same_keys["index"])


def test_of_an_artefact_with_an_index_a_class_is_read_from_the_files_that_hold_it_alone(tmp_path):
    places = []
    for noun, table in (("candidates", CANDIDATES), ("features", FEATURES)):
        out = open_directory(str(tmp_path / noun))
        for label in range(3):
            columns = {"label": np.full(4, label), "feature": np.full((4, WIDTH), label + 1, np.float32)}
            columns |= {name: np.arange(4) for name in ("subgroup", "index", "seed")}
            columns |= {name: np.array(["x"] * 4, object) for name in ("image_id", "image")}
            columns["image"] = np.array([b"x"] * 4, object)
            columns = {name: columns[name] for name in table}
            out.write(f"part-{label:05d}.parquet", to_parquet(columns, table))
        write_index(out, {name: pack_part_keys(out.read(name), table) for name in out.files()})
        complete(out, {"rows": 12})
        places.append(out)
    pool = open_candidates(*places, ("candidates", "features"), subgroup=3)
    for table, rows in ((pool.candidates, 3), (pool.real, 4)):
        (table.directory / "part-00001.parquet").delete()
        (_, first), (_, last) = table.read([0, 2], limit=4)
        assert (first.tolist(), last.tolist()) == ([[1.0] * WIDTH] * rows, [[3.0] * WIDTH] * rows)
        with pytest.raises(InputError, match="part-00001"):
            list(table.read([1]))


def test_a_larger_pool_gets_more_shards_where_memory_is_short(tmp_path):
    pool = opened(tmp_path, *features(9))
    large = pool.__class__(pool.candidates, pool.real, pool.classes, pool.num_images, np.full(9, 10_000_000))
    settings = SETTINGS.model_copy(update={"memory_gb": 1.5})
    assert split(Source(large, tuple(map(str, range(9))), settings, IPC, 0), 2)[0] > 2


def test_the_lower_bound_needs_its_memory_and_its_size(tmp_path):
    pool = opened(tmp_path, *features(9))

    def check(subgroups, **settings):
        large = replace(pool, num_subgroups=np.full(9, subgroups))
        check_bound(Source(large, tuple("abcdefghi"), SETTINGS.model_copy(update=settings), IPC, 0))

    too_little = (
        r"select.memory_gb: 0.6 GB are too little .*; set at least 0\.8 GB, or select.lower_bound=series"
    )
    with pytest.raises(InputError, match=too_little):
        check(1000, memory_gb=0.6)
    check(1000, memory_gb=0.8)
    check(1000, memory_gb=0.6, lower_bound="series")
    check(2000, memory_gb=0.6)
    with pytest.raises(
        InputError, match=r"select.lower_bound: trws takes up to 10000 .* 9 × 2000; use series"
    ):
        check(2000, lower_bound="trws")


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


def bad_tables(tmp_path):
    """(candidates, real, words) → what the one line must name."""
    made = 0

    def case(change, *words, named):
        nonlocal made
        candidates, real = features(3, seed=7)
        change(candidates, real)
        made += 1
        return (*write(tmp_path / f"bad{made}", candidates, real), words), named

    def set_feature(value, row=1):
        def change(candidates, real):
            g, k, _ = candidates["class-01"][row]
            candidates["class-01"][row] = (g, k, np.array(value, dtype=float))

        return change

    def coincide(candidates, real):
        shared = np.ones(WIDTH)
        for name in ("class-00", "class-02"):
            candidates[name] = [(0, 0, shared)]

    nothing = ("class-01", "--candidates")
    return [
        case(
            set_feature([1.0] * 5), named=["--candidates", "class-01", "subgroup 0, index 1", "5 values", "8"]
        ),
        case(set_feature([np.nan] * WIDTH), named=["--candidates", "class-01", "index 1", "not finite"]),
        case(set_feature([0.0] * WIDTH), named=["--candidates", "class-01", "zero"]),
        case(lambda c, r: c.pop("class-01"), named=[*nothing, "no candidate"]),
        case(lambda c, r: r.pop("class-01"), named=["class-01", "--real", "no real image"]),
        case(
            lambda c, r: c["class-02"].append(c["class-02"][4]),
            named=["class-02", "subgroup 1, index 1", "twice"],
        ),
        case(lambda c, r: None, "select.alpha=-1", named=["select.alpha", "-1"]),
        case(lambda c, r: None, "select.beta=-0.5", named=["select.beta", "-0.5"]),
        case(lambda c, r: None, "select.normalization=all", named=["select.normalization", "per_class"]),
        case(lambda c, r: None, "select.coverage=1", named=["select.coverage", "select.unit=image"]),
        case(lambda c, r: None, "sample.subgroups=3", named=["sample", "select", "workers"]),
        case(coincide, named=["select.epsilon", "'class-00'", "'class-02'"]),
        case(
            lambda c, r: None, "select.unit=image", "ipc=13", named=["ipc", "13", "12 candidates", "class-00"]
        ),
        case(lambda c, r: None, "select.memory_gb=0.1", named=["select.memory_gb", "0.1 GB"]),
    ]


def test_bad_tables_give_one_line_and_exit_code_2(ray_cluster, tmp_path, capsys):
    out = tmp_path / "selection.json"
    for (candidates, real, words), named in bad_tables(tmp_path):
        places = ["--candidates", candidates, "--real", real, "--out", str(out)]
        code = run_command("select", [*places, "workers.shards=1", *words])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), (named, errors)
        for word in named:
            assert word in errors[0], (word, errors[0])
        assert not out.exists()


def test_bad_files_give_one_line_and_exit_code_2(tmp_path, capsys):
    candidates, real = write(tmp_path, *features(2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no parquet")
    out = ["--out", str(tmp_path / "selection.json")]
    for words, named in (
        (
            ["--candidates", str(tmp_path / "missing.parquet"), "--real", real, *out],
            ["--candidates", "does not exist"],
        ),
        (
            ["--candidates", str(tmp_path / "empty"), "--real", real, *out],
            ["--candidates", "no .parquet file"],
        ),
        (
            ["--candidates", str(tmp_path / "text.parquet"), "--real", real, *out],
            ["--candidates", "no readable Parquet"],
        ),
        (["--candidates", real, "--real", real, *out], ["--candidates", "no column subgroup, index"]),
        (["--candidates", candidates, "--real", real, "--out", str(tmp_path)], ["--out", "is a folder"]),
    ):
        assert run_command("select", words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        for word in named:
            assert word in error, (word, error)


def test_the_job_writes_the_selection_and_says_how_good_it_is(ray_cluster, tmp_path, capsys):
    candidates, real = write(tmp_path, *features(4))
    out = tmp_path / "new" / "selection.json"
    words = [
        "--candidates",
        candidates,
        "--real",
        real,
        "--out",
        str(out),
        "select.beta=0.5",
        "workers.shards=1",
    ]
    assert run_command("select", words) == 0
    first = out.read_bytes()
    assert run_command("select", words) == 0
    assert out.read_bytes() == first
    document = json.loads(out.read_text())
    assert set(document["selection"]) == {f"class-{i:02d}" for i in range(4)}
    assert document["settings"]["beta"] == 0.5
    assert {"objective", "terms", "lower_bound", "gap", "gap_of_gain", "solver"} <= set(document)
    shown = capsys.readouterr().out
    assert f"{document['objective']:.6f}" in shown
    assert "lower bound" in shown
    printed = subprocess.run(next_commands(shown)["look"], capture_output=True, check=True).stdout
    assert json.loads(printed) == document
