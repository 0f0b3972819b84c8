"""`ims3 pretrain`: from images to a model folder, in a few steps; its model card."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from flat import opened
from PIL import Image
from printed import job, next_commands
from tiny import CLASSES, write_images

from ims3_ray.cli import run_command
from ims3_ray.cluster.resources import Machine
from ims3_ray.config.load import load_config, load_settings, override_words, parse_overrides
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.data.loader import CachedPixels
from ims3_ray.errors import InputError
from ims3_ray.jobs.pretrain.command import distil_fields
from ims3_ray.jobs.pretrain.quality import Quality, model_card
from ims3_ray.jobs.pretrain.rows import Views, scaling_factor
from ims3_ray.jobs.pretrain.run import Pretraining, check_network, move_to
from ims3_ray.jobs.pretrain.tasks import ExtractorTask
from ims3_ray.models.generator import inspect_generator
from ims3_ray.storage.artifacts import open_storage

SECTIONS = ("vae", "transformer", "extractor")
SMALL = (
    *("image_size=16", "vae.channels=[8,16,16]", "transformer.hidden_size=16", "transformer.depth=1"),
    *("extractor.width=8", "check_images=6", "workers.actors=2", "workers.train_workers=2"),
    *(f"{name}.{field}" for name in SECTIONS for field in ("steps=3", "batch_size=6")),
)


class Parts:
    """Latents in two parts, as `Latents` reads them."""

    def __init__(self, mean, logvar):
        self.mean, self.logvar = mean, logvar

    def parts(self):
        for half in (slice(0, 30), slice(30, None)):
            yield {"mean": self.mean[half], "logvar": self.logvar[half]}


def test_scaled_latents_have_deviation_one():
    rng = np.random.default_rng(0)
    mean = (3 + 2 * rng.standard_normal((100, 4, 2, 2))).astype(np.float16)
    logvar = np.full(mean.shape, np.log(0.5), np.float16)
    factor, deviation = scaling_factor(Parts(mean, logvar))
    sampled = mean + np.exp(0.5 * logvar) * rng.standard_normal((50, *mean.shape))
    assert (factor * sampled).std() == pytest.approx(1, abs=0.02)
    assert deviation == pytest.approx(1 / factor, rel=1e-4)


def test_held_out_images_are_not_trained_on(tiny_images, tmp_path, output):
    words = [f"data.train={tiny_images}/train", f"storage={tmp_path / 'runs'}", "--status", *SMALL]
    for more, images in (([], 36), (["data.validation_split=0.25"], 27)):
        assert f"of {images} images" in output("pretrain", *words, *more)


@pytest.mark.parametrize("query", [("--status", "workers.device=cuda"), ("--dry-run", "workers.gpus=1")])
def test_queries_of_trainings_on_gpus_need_none_here(tiny_images, tmp_path, output, monkeypatch, query):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    words = [f"data.train={tiny_images}/train", f"storage={tmp_path / 'runs'}", *SMALL]
    assert "of 36 images" in output("pretrain", *query, *words)


def test_the_next_command_distils_the_same_images(tmp_path):
    data = {"data.train": "/data/a: b", "data.classes": ["0", "1"], "data.max_bad_fraction": 0.5}
    data |= {"data.licence": "mit", "data.validation": "/data/v", "data.test": None}
    given = load_settings(Pretrain, data)
    config = load_config("digits", parse_overrides(override_words(distil_fields(given, tmp_path))))
    assert config.data.model_copy(update={"test": None}) == given.data
    assert (config.model.path, config.evaluate.protocol) == (str(tmp_path), "quick-val")


def test_a_second_driver_keeps_an_equal_model_folder_and_replaces_no_other(tmp_path):
    storage, out = open_storage(str(tmp_path / "runs")), tmp_path / "model"
    for name, text in (("first", "one"), ("second", "one"), ("third", "another")):
        (tmp_path / name / "vae").mkdir(parents=True)
        (tmp_path / name / "vae" / "config.json").write_text(text)
    move_to(tmp_path / "first", out, storage)
    move_to(tmp_path / "second", out, storage)
    with pytest.raises(InputError, match=r"^--out: .*/model"):
        move_to(tmp_path / "third", out, storage)
    assert (out / "vae" / "config.json").read_text() == "one"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"license": "unknown"}),
        (["data.licence=cc-by-4.0"], {"license": "cc-by-4.0"}),
        (
            ["data.licence={id: other, name: birds-terms, link: https://birds.example/terms}"],
            {
                "license": "other",
                "license_name": "birds-terms",
                "license_link": "https://birds.example/terms",
            },
        ),
    ],
)
def test_the_card_states_the_licence_of_the_images_if_it_was_given(tmp_path, words, expected):
    place = write_images(tmp_path / "birds", 2, seed=0)
    config = load_settings(Pretrain, parse_overrides([f"data.train={place}", *words]))
    text = model_card(config, opened(place, tmp_path), {"agreement": 0.5})
    assert f"{len(CLASSES)} classes" in text
    assert "MNIST" not in text  # only on the card of the bundled digits
    front = yaml.safe_load(text.split("---\n")[1])
    assert {name: value for name, value in front.items() if name.startswith("license")} == expected


def pretraining(place, tmp_path, *words):
    """A pretraining of images in `place`, that is not run."""
    images, storage = opened(place, tmp_path), open_storage(str(tmp_path / "storage"))
    config = load_settings(Pretrain, parse_overrides([f"data.train={place}", *words]))
    return Pretraining(config, images, storage, Machine("cpu", 2, 0, 16e9, config.workers))


def test_steps_follow_the_number_of_images_within_their_limits(tiny_images, tmp_path):
    words = [*SMALL[:-6], "workers.train_workers=1", "epochs=10", *(f"{n}.batch_size=4" for n in SECTIONS)]
    words += ["vae.steps=[1,1000]", "transformer.steps=[500,1000]", "extractor.steps=7"]
    ours = pretraining(tiny_images / "train", tmp_path, *words)
    lines = ours.status()
    steps = [int(words[-3]) for line in lines if (words := line.split())[-2] == "steps"]
    assert steps == [10 * 33 // 4, 500, 7, 7]  # of 36 images, one per class is held out
    assert {line.split()[0] for line in lines} == {*SECTIONS, "latents"}
    patience = [ours.training(name, None, None).optimisation.patience for name in SECTIONS]
    assert patience == [5, 5, 0]  # an exact number is not shortened


def test_the_plan_has_the_time_of_all_steps(tiny_images, tmp_path):
    ours = pretraining(tiny_images / "train", tmp_path, *SMALL)
    seconds = ours.step_seconds()
    assert all(seconds[name] > 0 for name in (*SECTIONS, "judge", "check_images"))
    lines = ours.status(dict.fromkeys(seconds, 3600.0))
    assert sum("3 h 00 min" in line for line in lines) == 4
    assert "18 h 00 min" in lines[-1]  # with six samples


@pytest.mark.parametrize(
    ("per_class", "words", "expected"),
    [
        (4, SMALL, "data.train: class 'blue' has 4"),
        (12, ["image_size=16", "vae.channels=[8,16,16]"], "vae.batch_size=32 .*extractor.batch_size=32"),
    ],
)
def test_too_few_images_are_refused_with_the_remedy(tmp_path, per_class, words, expected):
    with pytest.raises(InputError, match=expected):
        pretraining(write_images(tmp_path / "few", per_class, seed=0), tmp_path, *words)


def test_an_extractor_with_batch_norm_is_refused():
    config = load_settings(Pretrain, {"extractor": {"network": "convnet3bn"}})
    with pytest.raises(InputError, match=r"^extractor\.network: convnet3bn"):
        check_network(config, 2)


def test_a_batch_beyond_the_memory_is_refused_before_training(tiny_images, tmp_path):
    ours = pretraining(tiny_images / "train", tmp_path, *SMALL)
    ours.check_memory()
    ours.machine = replace(ours.machine, memory=2.4e9)
    with pytest.raises(InputError, match=r"^vae.batch_size: .*micro_batches"):
        ours.check_memory()


def test_held_out_losses_are_shares_of_a_mean_over_more_parts_than_rows(tiny_images, tmp_path):
    ours = pretraining(tiny_images / "train", tmp_path, *SMALL)
    rows = {"rows": CachedPixels(ours.images, 16), "held_out": CachedPixels(ours.held_out, 16)}
    task = ExtractorTask(torch.device("cpu"), ours.models, **rows, batch_size=6, micro_batches=6, seed=0)
    errors = [task.held_out_losses(part)["error"].item() for part in range(6)]
    assert sum(errors) == pytest.approx(2 / 3)  # of three classes, an untrained network predicts one
    assert errors[3:] == [0, 0, 0]
    task.close()


@pytest.mark.parametrize(
    ("mirror", "shift", "count"), [(False, 0, 1), (True, 0, 2), (False, 2, 5), (True, 2, 10)]
)
def test_views_are_mirrored_and_shifted_and_all_are_drawn(mirror, shift, count):
    def texts(images):
        return {str(image[..., 2:-2, 2:-2].tolist()) for image in images}

    image, views = torch.arange(3 * 16 * 16.0).reshape(1, 3, 16, 16), Views(mirror, shift)
    moves = [(0, 0), *((2, 0), (-2, 0), (0, 2), (0, -2))[: 4 * (shift // 2)]]
    mirrored = (image, image.flip(-1))[: 1 + mirror]
    expected = torch.cat([x.roll(by, (2, 3)) for x in mirrored for by in moves])
    assert torch.equal(views.view(image, 0), image)
    assert len(views) == len(texts(expected)) == count
    assert texts(expected) == texts(views.random(image.expand(200, -1, -1, -1), torch.Generator()))


GOOD = {"agreement": 0.9, "agreement_images": 9, "chance": 0.25, "judge_accuracy": 0.95, "copy_rate": 0.02}
GOOD |= {"held_out_copy_rate": 0.01, "psnr": 25.0, "held_out_images": 9}


@pytest.mark.parametrize(
    ("figures", "headline", "change", "problem"),
    [
        ({}, "Good", None, None),
        ({"copy_rate": 0.5}, "Usable", "add images", None),
        ({"psnr": 12.0}, "Usable", "vae.steps", None),
        ({"agreement": 0.6}, "Usable", "transformer.steps", None),
        ({"agreement": 0.44}, "Not good", "epochs", "transformer"),
        ({"agreement": 0.44, "judge_accuracy": 0.4}, "Not good", "labels", "data.train"),
    ],
)
def test_the_verdict_names_what_to_change(figures, headline, change, problem):
    quality = Quality(**GOOD | figures)
    assert quality.claim().headline.startswith(headline)
    assert change is None or change in quality.claim().detail
    assert (quality.problem or "").partition(":")[0] == (problem or "")


@pytest.mark.slow
def test_a_model_is_trained_measured_written_and_reused(ray_cluster, tiny_images, tmp_path, capsys, output):
    words = [f"data.train={tiny_images}/train", f"storage={tmp_path / 'runs'}", *SMALL]
    assert output("pretrain", "--dry-run", *words).count("would run") == 6
    assert run_command("pretrain", ["--out", str(tmp_path / "model"), *words]) == 2  # after three steps
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: (transformer|data.train): .*model", error)
    page = (tmp_path / "model" / "quality.html").read_text()
    assert page.count("<img") == 2 * (6 + 3)  # six samples with neighbours, one held-out image per class
    assert "Not good enough" in page
    assert "Not good enough" in (tmp_path / "model" / "README.md").read_text()
    for name in ("samples", "neighbours", "reconstructions"):
        assert Image.open(tmp_path / "model" / f"{name}.png").width > 100
    words.append("check_images=0")
    out = output("pretrain", "--out", tmp_path / "unchecked", *words)
    info = inspect_generator(str(tmp_path / "model"))
    assert (info.image_size, info.config.num_classes) == (16, 3)
    (latents,) = (tmp_path / "runs" / "pretrain" / "latents").iterdir()
    manifest = latents / "manifest.json"
    assert json.loads(manifest.read_text())["rows"] == 36
    factor = json.loads((tmp_path / "model" / "vae" / "config.json").read_text())["scaling_factor"]
    assert f"scaling factor: {factor:.4g}" in out
    assert job(next_commands(out)["distil"])[0] == "distill"
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert output("pretrain", "--status", *words).count("complete") == 5
    before = manifest.stat().st_mtime_ns
    output("pretrain", "--out", tmp_path / "again", *words)
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "model" / weights).read_bytes()
    assert manifest.stat().st_mtime_ns == before
