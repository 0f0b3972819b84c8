"""`ims3 select`: the file that it writes, and its errors."""

import json

import numpy as np
import pytest
from selections import WIDTH, feature_tables, write_feature_tables

from ims3_ray.cli import main


def select(candidates, real, out, *words):
    files = "--candidates", candidates, "--real", real, "--out", out
    return "select", *files, "workers.shards=1", *words


def set_feature(value):
    def change(candidates, real):
        g, k, _ = candidates["class-01"][1]
        candidates["class-01"][1] = (g, k, np.array(value, dtype=float))

    return change


def repeat_row(candidates, real):
    candidates["class-02"].append(candidates["class-02"][4])


def make_centroids_coincide(candidates, real):
    for name in ("class-00", "class-02"):
        candidates[name] = [(0, 0, np.ones(WIDTH))]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_feature([1.0] * 5), ["--candidates", "class-01", "subgroup 0, index 1", "5 values", "8"]),
        (set_feature([np.nan] * WIDTH), ["--candidates", "class-01", "index 1", "not finite"]),
        (set_feature([0.0] * WIDTH), ["--candidates", "class-01", "zero"]),
        (lambda candidates, _: candidates.pop("class-01"), ["--candidates", "class-01", "no candidate"]),
        (lambda _, real: real.pop("class-01"), ["--real", "class-01", "no real image"]),
        (repeat_row, ["class-02", "subgroup 1, index 1", "twice"]),
        (make_centroids_coincide, ["select.epsilon", "'class-00'", "'class-02'"]),
    ],
)
def test_bad_tables_give_one_line_and_exit_code_2(ray_cluster, tmp_path, capsys, change, named):
    tables = feature_tables(3, seed=7)
    change(*tables)
    assert_refused(tmp_path, capsys, write_feature_tables(tmp_path, *tables), (), named)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["select.alpha=-1"], ["select.alpha", "-1"]),
        (["select.normalization=all"], ["select.normalization", "per_class"]),
        (["select.coverage=1"], ["select.coverage", "select.unit=image"]),
        (["sample.subgroups=3"], ["sample", "select", "workers"]),
        (["select.unit=image", "ipc=13"], ["ipc", "13", "12 candidates", "class-00"]),
        (["select.memory_gb=0.1"], ["select.memory_gb", "0.1 GB"]),
    ],
)
def test_bad_settings_give_one_line_and_exit_code_2(ray_cluster, tmp_path, capsys, words, named):
    assert_refused(tmp_path, capsys, write_feature_tables(tmp_path, *feature_tables(3)), words, named)


def assert_refused(folder, capsys, tables, words, named):
    out = folder / "selection.json"
    assert main([*map(str, select(*tables, out, *words))]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert [word for word in named if word not in errors[0]] == [], errors[0]
    assert not out.exists()


def test_bad_files_give_one_line_and_exit_code_2(tmp_path, refused):
    candidates, real = write_feature_tables(tmp_path, *feature_tables(2))
    out = tmp_path / "selection.json"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no parquet")
    for files, named in (
        ((tmp_path / "missing.parquet", real, out), ["--candidates", "does not exist"]),
        ((tmp_path / "empty", real, out), ["--candidates", "no .parquet file"]),
        ((tmp_path / "text.parquet", real, out), ["--candidates", "no readable Parquet"]),
        ((real, real, out), ["--candidates", "no column subgroup, index"]),
        ((candidates, real, tmp_path), ["--out", "is a folder"]),
    ):
        line = refused(*select(*files))
        assert [word for word in named if word not in line] == [], line


def test_the_command_writes_the_same_selection_each_time_and_prints_its_bound(ray_cluster, tmp_path, output):
    files, out = write_feature_tables(tmp_path, *feature_tables(4)), tmp_path / "new" / "selection.json"
    printed = output(*select(*files, out, "select.beta=0.5"))
    first = out.read_bytes()
    output(*select(*files, out, "select.beta=0.5"))
    assert out.read_bytes() == first
    document = json.loads(first)
    assert set(document["selection"]) == {f"class-{i:02d}" for i in range(4)}
    assert document["settings"]["beta"] == 0.5
    assert {"objective", "terms", "lower_bound", "gap", "gap_of_gain", "solver"} <= set(document)
    assert f"{document['objective']:.6f}" in printed
    assert "lower bound" in printed
