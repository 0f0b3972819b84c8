"""bench plan: what a recipe would take elsewhere, from the stages' own costs."""

import json

import pytest

from ims3_ray.cli import run_command

TINY = ["--recipe", "digits-paper", "--size", "tiny", "--classes", "4", "encode.images_per_class=null"]


def planned(tmp_path, *words: str) -> dict[str, dict]:
    out = tmp_path / "plan.json"
    assert run_command("bench", ["plan", *TINY, "--out", str(out), *words]) == 0
    return {row["stage"]: row["by_gpus"] for row in json.loads(out.read_text())["stages"]}


def test_work_of_a_pool_is_shared_by_its_gpus_and_grows_with_the_images(tmp_path):
    few = planned(tmp_path, "--images", "10000", "--gpus", "8,64")
    many = planned(tmp_path, "--images", "30000", "--gpus", "8,64")
    assert few["invert"]["8"]["work_s"] == pytest.approx(8 * few["invert"]["64"]["work_s"])
    assert many["invert"]["64"]["work_s"] == pytest.approx(3 * few["invert"]["64"]["work_s"])
    assert many["sample"] == few["sample"] | {
        gpus: few["sample"][gpus] | {"driver": many["sample"][gpus]["driver"]} for gpus in ("8", "64")
    }


def test_fine_tuning_has_no_more_workers_than_parts_of_a_batch(tmp_path):
    two = planned(tmp_path, "--images", "1000", "--gpus", "2,64")["finetune"]
    eight = planned(
        tmp_path, "--images", "1000", "--gpus", "2,64", "finetune.micro_batches=8", "finetune.batch_size=8"
    )["finetune"]
    auto = planned(tmp_path, "--images", "1000", "--gpus", "2,64", "finetune.batch_size=auto")["finetune"]
    assert two["2"]["work_s"] == two["64"]["work_s"] == auto["2"]["work_s"]
    assert auto["64"]["work_s"] < auto["2"]["work_s"] / 30
    assert eight["64"]["work_s"] == pytest.approx(eight["2"]["work_s"] / 4)


@pytest.mark.parametrize(
    "words", [["--gpus", "8;64"], ["--classes", "1"], ["--classes", "10,100"], ["--tflops", "0"]]
)
def test_a_plan_of_nothing_is_refused_in_a_line(words, tmp_path, capsys):
    assert run_command("bench", ["plan", *TINY, *words]) == 2
    assert words[0] in capsys.readouterr().err
