"""Planned costs scale with GPUs and images as the stages' cost models say."""

import json

import pytest

from benchmarks.__main__ import main

TINY = ["--recipe", "digits-paper", "--size", "tiny", "--classes", "4", "encode.images_per_class=null"]


def plan(tmp_path, *words: str) -> dict[str, dict]:
    out = tmp_path / "plan.json"
    assert main(["plan", *TINY, "--out", str(out), *words]) == 0
    return {row["stage"]: row["by_gpus"] for row in json.loads(out.read_text())["stages"]}


def test_pool_time_is_proportional_to_images_and_inverse_to_gpus(tmp_path):
    few = plan(tmp_path, "--images", "10000", "--gpus", "8,64")
    many = plan(tmp_path, "--images", "30000", "--gpus", "8,64")
    assert few["invert"]["8"]["work_s"] == pytest.approx(8 * few["invert"]["64"]["work_s"])
    assert many["invert"]["64"]["work_s"] == pytest.approx(3 * few["invert"]["64"]["work_s"])
    assert many["sample"]["8"]["work_s"] == few["sample"]["8"]["work_s"]


def test_fine_tuning_uses_at_most_one_gpu_per_micro_batch(tmp_path):
    size = ["--images", "1000", "--gpus", "2,64"]
    two = plan(tmp_path, *size)["finetune"]
    eight = plan(tmp_path, *size, "finetune.micro_batches=8", "finetune.batch_size=8")["finetune"]
    auto = plan(tmp_path, *size, "finetune.batch_size=auto")["finetune"]
    assert eight["64"]["exchange_s"] == pytest.approx(1.75 / 2.5 * eight["2"]["exchange_s"])
    assert two["2"]["work_s"] == two["64"]["work_s"] == auto["2"]["work_s"]
    assert auto["64"]["work_s"] < auto["2"]["work_s"] / 30
    assert eight["64"]["work_s"] == pytest.approx(eight["2"]["work_s"] / 4)
