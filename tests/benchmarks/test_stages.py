"""Each benchmark runs on tiny settings. No speed is tested."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.compare import saved_bytes
from benchmarks.ours import our_variant, step_operations
from benchmarks.problems import Problem
from benchmarks.published import EMA_DECAY, FineTuning, published_variant
from benchmarks.selection import whole_objective
from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config
from ims3_ray.method.difffit import trainable
from ims3_ray.method.s3.objective import Objective, evaluate
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.stages.base import count_forward
from ims3_ray.storage.artifacts import open_directory

TINY = ["--random-init", "--size", "tiny", "--repetitions", "2", "--seconds", "0.01"]
SMALL = ["ipc=2", "sample.steps=3", "invert.steps=3", "finetune.log_every=2"]
SMALL += [f"{stage}.batch_size={{cpu: 4, cuda: 4}}" for stage in ("sample", "encode", "invert", "embed")]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture
def context(ray_cluster, tiny_model, tiny_images, tmp_path):
    fields = {
        "data.train": str(tiny_images / "train"),
        "model.path": str(tiny_model),
        "embed.extractor": str(tiny_model),
        "storage": str(tmp_path / "storage"),
        "evaluate.protocol": "none",
        "ipc": 2,
        "sample.steps": 3,
        "invert.steps": 3,
    }
    fields |= {f"{stage}.batch_size": {"cpu": 4, "cuda": 4} for stage in ("sample", "encode", "invert")}
    config = load_config("digits-paper", fields)
    return prepare(config, find_machine(config.workers))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words", "names"),
    [
        ("sample", ["--batch-size", "2,3", "--no-published"], ["ours", "ours"]),
        ("finetune", [], ["ours", "ours", "published"]),
        ("refine", ["--batch-size", "1,2"], ["ours", "ours"]),
        ("encode", [], ["ours", "published"]),
        ("invert", [], ["ours", "published"]),
    ],
)
def test_stage_benchmark_measures_every_variant(ray_cluster, work, stage, words, names, output):
    out = work / "results.json"
    places = "--work", work / "inputs", "--out", out
    printed = output(stage, *TINY, *words, *places, *SMALL, main=main)
    document = json.loads(out.read_text())
    assert {"date", "hardware", "versions", "recipe", "parameters"} < set(document)
    assert document["benchmark"] == stage
    assert min(document["device"][name] for name in ("matrix_rate", "copy_bandwidth")) > 0
    assert [variant["name"] for variant in document["variants"]] == names
    for variant in document["variants"]:
        assert len(variant["rates"]) == 2
        numbers = ("images_per_s", "peak_memory_bytes", "load_s", "matrix_share")
        assert min(*variant["rates"], *(variant[name] for name in numbers)) > 0
        assert (variant["syncs_per_step"] is None) == (document["device"]["kind"] == "cpu")
        assert (variant["ratio"] is not None) == ("published" in names)
        assert (variant["checkpoint_bytes"] is not None) == (stage == "finetune")
        assert f"| {variant['name']} |" in printed
    if stage == "sample":
        assert [variant["batch_size"] for variant in document["variants"]] == [2, 3]


@pytest.mark.parametrize(
    ("stage", "column"), [("sample", "image"), ("encode", "mean"), ("invert", "inversion")]
)
def test_both_variants_of_a_stage_make_the_same_kind_of_rows(context, tmp_path, stage, column):
    variants = our_variant(context, stage, open_directory(str(tmp_path))), published_variant(context, stage)
    ours, published = (variant.build(**variant.arguments)() for variant in variants)
    ours = ours[0][column]
    assert len(ours) == variants[0].images == 4
    views = 1 if stage == "sample" else context.num_views
    assert len(published) == views * variants[1].images
    if stage == "sample":
        assert {Image.open(io.BytesIO(data)).size for data in [*ours, *published]} == {(16, 16)}
    else:
        assert {row.shape for row in published} == {(1, *ours.shape[1:])}


def test_published_fine_tuning_averages_all_parameters_and_trains_difffits_only(context, tmp_path):
    variant = published_variant(context, "finetune")
    step: FineTuning = variant.build(**variant.arguments)
    before = {name: value.clone() for name, value in step.dit.state_dict().items()}
    step()
    tuned = set(trainable(step.dit))
    parameters, averages = dict(step.dit.named_parameters()), dict(step.ema.named_parameters())
    assert set(averages) == set(parameters) > tuned
    for name, parameter in parameters.items():
        expected = EMA_DECAY * before[name] + (1 - EMA_DECAY) * parameter.detach()
        torch.testing.assert_close(averages[name].detach(), expected)
        if name not in tuned:
            assert torch.equal(parameter.detach(), before[name])
    assert any(not torch.equal(parameters[name].detach(), before[name]) for name in tuned)
    ours = our_variant(context, "finetune", open_directory(str(tmp_path / "ours")))
    assert saved_bytes(ours.build(**ours.arguments).checkpoint()) > 0
    assert saved_bytes(step.checkpoint()) > 2 * 4 * sum(p.numel() for p in parameters.values())


def test_counted_operations_exclude_gradients_of_frozen_matrices(context):
    """A forward pass and a backward pass to activations only: about two forward passes, not three."""
    forward, step = count_forward(context), step_operations(context.info.config)
    assert 1.5 * forward.dit < step < 2.5 * forward.dit
    assert FineTuning.operations(context) == forward.encode + forward.dit + step


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["nonsense"], "nonsense"),
        (["sample", "--size", "tiny"], "--random-init"),
        (["sample", "--batch-size", "0"], "--batch-size"),
        (["sample", "--random-init", "model.path=x"], "model.path"),
        (["finetune", "--batch-size", "7"], "finetune.batch_size"),
        (["sample", "--out", "/nowhere/results.json"], "--out"),
        (["select", "--normalization", "all"], "select.normalization"),
        (["plan", "--gpus", "8;64"], "--gpus"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, field, refused):
    assert field in refused(*words, main=main)


def test_selection_benchmark_reaches_the_plain_loops_objective(ray_cluster, tmp_path, output):
    out = tmp_path / "results.json"
    words = "--grid", "12x3", "--noise", "0.3", "--normalization", "per_class", "--out", out
    printed = output("select", *words, "workers.shards=1", main=main)
    results = json.loads(out.read_text())
    assert [result["kind"] for result in results] == ["structured", "structureless"]
    for result in results:
        assert result["plain_kind"] == "measured"
        assert min(result["plain_s"], result["rounds_s"]) > 0
        assert result["objective"] <= result["plain_objective"] + 1e-5
    assert "| 12 × 3 | noise 0.3 |" in printed


@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_plain_loop_evaluates_the_objective_of_the_method(normalization):
    candidates, real = Problem(6, 3, 0.4).vectors()
    choice, objective = np.array([0, 2, 1, 0, 1, 2]), Objective(0.4, 0.9, 1e-3, normalization)
    expected = evaluate(choice, list(candidates), real, objective).total
    assert whole_objective(candidates, real, choice, objective) == pytest.approx(expected, rel=1e-4)
