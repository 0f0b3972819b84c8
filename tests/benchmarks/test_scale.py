"""The scale benchmark measures every stage at every number of classes."""

import json

import pytest

from benchmarks import scale
from benchmarks.__main__ import main


@pytest.mark.chaos
def test_every_stage_has_seconds_memory_and_growth(ray_cluster, tmp_path, capsys):
    out = tmp_path / "results.json"
    flags = ["--classes", "2,4", "--images", "5", "--work", str(tmp_path / "work"), "--out", str(out)]
    fields = ["ipc=2", "sample.subgroups=2", "evaluate.neighbours=1", "workers.actors=2"]
    assert main(["scale", *flags, *fields]) == 0
    costs = json.loads(out.read_text())["stages"]
    by_stage = {(cost["stage"], cost["classes"]): cost for cost in costs}
    assert {"encode", "finetune", "sample", "select", "export", "evaluate"} <= {name for name, _ in by_stage}
    assert by_stage["sample", 2]["rows"] * 2 == by_stage["sample", 4]["rows"] == 16
    assert all(min(cost["seconds"], cost["driver_gb"]) > 0 for cost in costs)
    assert by_stage["sample", 2]["worker_gb"] > 0
    assert by_stage["sample", 2]["exponent"] is None
    assert by_stage["sample", 4]["exponent"] is not None
    assert "| export | 4 |" in capsys.readouterr().out


def test_exponent_is_one_for_linear_and_two_for_quadratic_growth():
    assert scale.exponent(100, 30.0, 10, 3.0) == pytest.approx(1)
    assert scale.exponent(100, 300.0, 10, 3.0) == pytest.approx(2)
    assert scale.exponent(10, 4.0, 10, 3.0) is None
