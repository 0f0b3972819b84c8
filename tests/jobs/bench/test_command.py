"""jobs/bench.py on tiny problems: all sides do their work and are told apart; no speed is tested."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ims3_ray.cli import run_command
from ims3_ray.cluster.device_benchmark import matrix_rate, measure_device
from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config
from ims3_ray.errors import InputError
from ims3_ray.jobs.bench import models
from ims3_ray.jobs.bench.instances import Case
from ims3_ray.jobs.bench.own import own_side, step_operations
from ims3_ray.jobs.bench.published import EMA_DECAY, FineTuning, published_side
from ims3_ray.jobs.bench.selection import whole_objective
from ims3_ray.jobs.bench.sides import saved_bytes
from ims3_ray.method.difffit import trainable
from ims3_ray.method.s3.objective import Objective, evaluate
from ims3_ray.models.device import batch_must_fit
from ims3_ray.pipeline import prepare as preparation
from ims3_ray.stages.cost_model import count_forward
from ims3_ray.storage.artifacts import open_directory

TINY = ["--random-init", "--size", "tiny", "--repetitions", "2", "--seconds", "0.01"]
SMALL = ["ipc=2", "sample.steps=3", "invert.points=3", "finetune.log_every=2"]
SMALL += [f"{stage}.batch_size={{cpu: 4, cuda: 4}}" for stage in ("sample", "encode", "invert", "embed")]
KEYS = {"what", "date", "device", "hardware", "versions", "repetitions", "model", "parameters"}
KEYS |= {"image_size", "recipe"}


def benched(folder, *words):
    """The document of a bench on the tiny model, made once below `folder`."""
    out = folder / "figures.json"
    words = [*TINY, *words, "--work", str(folder / "work"), "--out", str(out), *SMALL]
    assert run_command("bench", words) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def context(ray_cluster, tiny_model, tiny_images, tmp_path):
    places = {
        "data.train": str(tiny_images / "train"),
        "model.path": str(tiny_model),
        "embed.extractor": str(tiny_model),
    }
    four = {f"{stage}.batch_size": {"cpu": 4, "cuda": 4} for stage in ("sample", "encode", "invert")}
    small = {"ipc": 2, "sample.steps": 3, "invert.points": 3} | four
    config = load_config(
        "digits-paper", places | small | {"evaluate.protocol": "none", "storage": str(tmp_path / "storage")}
    )
    return preparation.prepare(config, find_machine(config.workers))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words", "names"),
    [
        ("sample", ["--batch-size", "2,3", "--no-published"], ["own", "own"]),
        ("finetune", [], ["own", "own", "published"]),
        ("refine", ["--batch-size", "1,2"], ["own", "own"]),
        ("encode", [], ["own", "published"]),
        ("invert", [], ["own", "published"]),
    ],
)
def test_the_bench_of_a_stage_measures_its_sides(ray_cluster, work, stage, words, names, capsys):
    document = benched(work, stage, *words)
    assert set(document) == KEYS | {"sides"}
    assert document["what"] == stage
    assert min(document["device"][name] for name in ("matrix_rate", "copy_bandwidth")) > 0
    assert [side["name"] for side in document["sides"]] == names
    shown = capsys.readouterr().out
    assert "one thread" in shown
    for side in document["sides"]:
        assert len(side["rates"]) == 2
        numbers = ("images_per_s", "peak_memory_bytes", "load_s", "matrix_share")
        assert min(*side["rates"], *(side[name] for name in numbers)) > 0
        assert side["warm_up_s"] >= 0
        assert (side["waits_a_step"] is None) == (document["device"]["kind"] == "cpu")
        assert (side["ratio"] is not None) == ("published" in names)
        assert (side["checkpoint_bytes"] is not None) == (stage == "finetune")
        assert f"| {side['name']} |" in shown
    if stage == "sample":
        assert [side["batch_size"] for side in document["sides"]] == [2, 3]


@pytest.mark.chaos
def test_the_bench_of_the_pipeline_tells_start_and_rate_apart(ray_cluster, work, capsys):
    document = benched(
        work, "pipeline", "--repetitions", "1", "--stages", "invert,finetune", "--batches", "3"
    )
    assert [o["stage"] for o in document["stages"]] == ["invert", "finetune"]
    for o in document["stages"]:
        assert min(o["bare_images_per_s"], o["ray_images_per_s"], o["ratio"], o["start_s"], o["whole_s"]) > 0
        assert o["start_s"] < o["whole_s"]


@pytest.mark.parametrize(
    ("stage", "column"), [("sample", "image"), ("encode", "mean"), ("invert", "inversion")]
)
def test_both_sides_of_a_stage_make_the_same_kind_of_rows(context, tmp_path, stage, column):
    sides = own_side(context, stage, open_directory(str(tmp_path))), published_side(context, stage)
    own, published = (side.build(**side.arguments)() for side in sides)
    own = own[0][column]
    assert len(own) == sides[0].images == 4
    views = 1 if stage == "sample" else context.num_views
    assert len(published) == views * sides[1].images
    if stage == "sample":
        assert {Image.open(io.BytesIO(data)).size for data in [*own, *published]} == {(16, 16)}
    else:
        assert {row.shape for row in published} == {(1, *own.shape[1:])}


def test_published_fine_tuning_averages_all_parameters_and_trains_its_own(context, tmp_path):
    side = published_side(context, "finetune")
    step: FineTuning = side.build(**side.arguments)
    before = {name: value.clone() for name, value in step.dit.state_dict().items()}
    step()
    tuned = set(trainable(step.dit))
    parameters, averages = dict(step.dit.named_parameters()), dict(step.ema.named_parameters())
    assert set(averages) == set(parameters) > tuned
    for name, parameter in parameters.items():
        expected = EMA_DECAY * before[name] + (1 - EMA_DECAY) * parameter.detach()
        torch.testing.assert_close(averages[name].detach(), expected)
        assert parameter.requires_grad == (name in tuned)  # as the published code freezes the others
        if name not in tuned:
            assert parameter.grad is None
            assert torch.equal(parameter.detach(), before[name])
    assert any(not torch.equal(parameters[name].detach(), before[name]) for name in tuned)
    own = own_side(context, "finetune", open_directory(str(tmp_path / "own")))
    assert saved_bytes(own.build(**own.arguments).checkpoint()) > 0
    values = sum(p.numel() for p in parameters.values())
    assert saved_bytes(step.checkpoint()) > 2 * 4 * values  # model and average


def test_neither_side_counts_gradients_of_frozen_matrices(context):
    """Forward, and back through the matrices once: with their gradients a step is three forward passes."""
    forward, step = count_forward(context), step_operations(context.info.config)
    assert 1.5 * forward.dit < step < 2.5 * forward.dit
    assert FineTuning.operations(context) == forward.encode + forward.dit + step


def test_random_weights_and_images_belong_to_their_seed(tmp_path):
    size = models.size_named("tiny")
    for name in "ab":
        models.random_pipeline(size, tmp_path / name)
        models.random_images(size, tmp_path / name / "images", 2)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_device_is_measured_on_one_thread_and_threads_are_given_back():
    threads = torch.get_num_threads()
    figures = measure_device("cpu")
    assert figures.matrix_rate > 0
    assert figures.copy_bandwidth > 0
    assert figures.name
    assert "fp32" in figures.line()
    assert "one thread" in figures.line()
    assert matrix_rate("cpu", torch.float32, 64, seconds=0.01) > 0
    assert torch.get_num_threads() == threads


def test_a_batch_that_does_not_fit_names_its_field_and_the_memory():
    def too_large():
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB."
        )

    with pytest.raises(InputError) as told, batch_must_fit("sample.batch_size.cuda", 256):
        too_large()
    for word in ("sample.batch_size.cuda", "256", "20.00 GiB", "79.11 GiB", "lower"):
        assert word in str(told.value)
    with (
        pytest.raises(InputError, match=r"finetune.batch_size: a batch of 8 .*needs at least"),
        batch_must_fit("finetune.batch_size", 8),
    ):
        raise torch.OutOfMemoryError("out of memory")


def test_a_stage_whose_batch_does_not_fit_says_so_from_its_pool(context, tmp_path):
    from ims3_ray.cluster.fan_out import Part, fan_out
    from ims3_ray.storage import schemas

    def too_large(batch_size):  # local, so that workers need not import this file
        def work(payload):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

        return work

    with pytest.raises(InputError, match=r"sample.batch_size.cpu: a batch of 32 .*20.00 GiB"):
        fan_out(
            too_large,
            {"batch_size": 32},
            [Part(0, 1, [])],
            table=schemas.FEATURES,
            out=open_directory(str(tmp_path)),
            machine=context.machine,
            stage="sample",
        )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nonsense"], ["nonsense", "sample", "pipeline"]),
        (["sample", "--random-init", "--size", "huge"], ["--size", "huge", "XL/2"]),
        (["sample", "--size", "tiny"], ["--size", "--random-init"]),
        (["sample", "--batch-size", "0"], ["--batch-size", "0"]),
        (["pipeline", "--batch-size", "8"], ["--batch-size", "sample.batch_size"]),
        (["pipeline", "--repetitions", "1", "--stages", "select"], ["--stages", "select", "finetune"]),
        (["pipeline", "--batches", "1"], ["--batches"]),
        (["sample", "--random-init", "model.path=x"], ["model.path", "--random-init"]),
        (["finetune", "--batch-size", "7"], ["finetune.batch_size", "7", "micro_batches"]),
        (["sample", "--out", "/nowhere/figures.json"], ["--out", "/nowhere"]),
        (["select", "--grid", "10by5"], ["--grid", "10by5"]),
        (["select", "--normalization", "all"], ["select.normalization", "all"]),
    ],
)
def test_bad_words_give_one_line_and_exit_code_2(words, named, capsys):
    assert run_command("bench", words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in named:
        assert word in error, (word, error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert run_command("bench", ["sample", "workers.device=cuda"]) == 2
    assert "workers.device" in capsys.readouterr().err


def test_the_bench_of_selection_measures_the_pool_beside_the_plain_loop(ray_cluster, tmp_path, capsys):
    out = tmp_path / "figures.json"
    words = ["select", "--grid", "12x3", "--noise", "0.3", "--normalization", "per_class", "--out", str(out)]
    assert run_command("bench", [*words, "workers.shards=1"]) == 0
    structured, structureless = json.loads(out.read_text())
    assert (structured["kind"], structureless["kind"]) == ("structured", "structureless")
    for figures in (structured, structureless):
        assert figures["plain_is"] == "measured"
        assert min(figures["plain_s"], figures["rounds_s"]) > 0
        assert figures["objective"] <= figures["plain_objective"] + 1e-5
    assert "| 12 × 3 | noise 0.3 |" in capsys.readouterr().out


@pytest.mark.parametrize("normalization", ["per_class", "none"])
def test_the_plain_loop_of_the_bench_is_the_objective_by_definition(normalization):
    candidates, real = Case(6, 3, 0.4).vectors()
    choice, objective = np.array([0, 2, 1, 0, 1, 2]), Objective(0.4, 0.9, 1e-3, normalization)
    expected = evaluate(choice, list(candidates), real, objective).total
    assert whole_objective(candidates, real, choice, objective) == pytest.approx(expected, rel=1e-4)
