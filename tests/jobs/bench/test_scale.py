"""bench scale: the pipeline runs at every number of classes, and what it held and took is told."""

import json

import numpy as np
import pytest

from ims3_ray.cli import run_command
from ims3_ray.errors import InputError
from ims3_ray.jobs.bench import scale


@pytest.mark.chaos
def test_every_stage_has_its_seconds_memory_and_growth_at_every_number_of_classes(
    ray_cluster, tmp_path, capsys
):
    out, words = (
        tmp_path / "figures.json",
        ["ipc=2", "sample.subgroups=2", "evaluate.neighbours=1", "workers.actors=2"],
    )
    flags = ["--classes", "2,4", "--images", "5", "--work", str(tmp_path / "work"), "--out", str(out)]
    assert run_command("bench", ["scale", *flags, *words]) == 0
    costs = json.loads(out.read_text())["stages"]
    by_stage = {(cost["stage"], cost["classes"]): cost for cost in costs}
    assert {"encode", "finetune", "sample", "select", "export", "evaluate"} <= {name for name, _ in by_stage}
    assert by_stage["sample", 2]["rows"] * 2 == by_stage["sample", 4]["rows"] == 16
    assert all(min(cost["seconds"], cost["driver_gb"]) > 0 for cost in costs)
    assert by_stage["sample", 2]["worker_gb"] > 0
    assert by_stage["sample", 2]["exponent"] is None
    assert by_stage["sample", 4]["exponent"] is not None
    assert "| export | 4 |" in capsys.readouterr().out


def test_time_that_grows_as_the_rows_has_exponent_one_and_as_their_square_two():
    assert scale.exponent(100, 30.0, 10, 3.0) == pytest.approx(1)
    assert scale.exponent(100, 300.0, 10, 3.0) == pytest.approx(2)
    assert scale.exponent(10, 4.0, 10, 3.0) is None


@pytest.mark.slow
def test_memory_that_is_held_for_a_moment_is_seen():
    with scale.watched() as peak:
        held = np.ones(30_000_000)
        for _ in range(20):
            held.sum()
            held += 1
    with scale.watched() as after:
        del held
    assert peak.driver > 240e6
    assert after.driver <= peak.driver


@pytest.mark.parametrize("words", ["1,10", "10;100", "", "ten"])
def test_numbers_of_classes_that_are_none_are_refused(words):
    with pytest.raises(InputError, match="--classes"):
        scale._sizes(words)
