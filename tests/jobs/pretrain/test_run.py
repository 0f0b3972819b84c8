"""`ims3 pretrain`: from images to a model folder, in a few steps; its model card."""

import json

import numpy as np
import pytest
import yaml
from printed import job, next_commands
from tiny import CLASSES, write_images

from ims3_ray.cli import run_command
from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Pretrain
from ims3_ray.data.images import open_images
from ims3_ray.errors import InputError
from ims3_ray.jobs.pretrain.run import model_card, move_to, scaling_factor
from ims3_ray.models.generator import inspect_generator
from ims3_ray.storage.artifacts import open_storage

SMALL = (
    *("image_size=16", "vae.channels=[8,16,16]", "transformer.hidden_size=16", "transformer.depth=1"),
    *("extractor.width=8", "check_images=6", "workers.actors=2", "workers.train_workers=2"),
    *(
        f"{name}.{field}"
        for name in ("vae", "transformer", "extractor")
        for field in ("steps=3", "batch_size=6")
    ),
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


def test_held_out_images_are_not_trained_on(tiny_images, tmp_path, capsys):
    words = [f"data.train={tiny_images}/train", f"storage={tmp_path / 'runs'}", "--status"]
    for more, images in (([], 36), (["data.validation_split=0.25"], 27)):
        assert run_command("pretrain", [*words, *more]) == 0
        assert f"of {images} images" in capsys.readouterr().out


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
    place, storage = write_images(tmp_path / "birds", 2, seed=0), open_storage(str(tmp_path / "runs"))
    images = open_images(str(place), storage, seed=0, max_bad_fraction=0.0, classes=None, name="data.train")
    config = load_settings(Pretrain, parse_overrides([f"data.train={place}", *words]))
    text = model_card(config, images, {"agreement": 0.5})
    assert f"{len(CLASSES)} classes" in text
    assert "MNIST" not in text  # only on the card of the bundled digits
    front = yaml.safe_load(text.split("---\n")[1])
    assert {name: value for name, value in front.items() if name.startswith("license")} == expected


@pytest.mark.slow
def test_a_model_is_trained_measured_written_and_reused(ray_cluster, tiny_images, tmp_path, capsys):
    words = [f"data.train={tiny_images}/train", f"storage={tmp_path / 'runs'}", *SMALL]
    assert run_command("pretrain", ["--dry-run", *words]) == 0
    assert capsys.readouterr().out.count("would run") == 5
    assert run_command("pretrain", ["--out", str(tmp_path / "model"), *words]) == 0
    info = inspect_generator(str(tmp_path / "model"))
    assert (info.image_size, info.num_classes) == (16, 3)
    (latents,) = (tmp_path / "runs" / "pretrain" / "latents").iterdir()
    manifest = latents / "manifest.json"
    assert json.loads(manifest.read_text())["rows"] == 36
    factor = json.loads((tmp_path / "model" / "vae" / "config.json").read_text())["scaling_factor"]
    out = capsys.readouterr().out
    assert f"scaling factor: {factor:.4g}" in out
    assert job(next_commands(out)["distil"])[0] == "distill"
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert run_command("pretrain", ["--status", *words]) == 0
    assert capsys.readouterr().out.count("complete") == 5
    before = manifest.stat().st_mtime_ns
    assert run_command("pretrain", ["--out", str(tmp_path / "again"), *words]) == 0
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "model" / weights).read_bytes()
    assert manifest.stat().st_mtime_ns == before
