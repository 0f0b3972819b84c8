"""jobs/pretrain.py from images to a model folder that a run can use, in a few steps."""

import json

import numpy as np
import pytest
from printed import job, next_commands

from ims3_ray.cli import run_command
from ims3_ray.errors import InputError
from ims3_ray.jobs.pretrain.run import move_to, scaling_factor
from ims3_ray.models.generator import inspect_generator
from ims3_ray.storage.artifacts import open_storage


class Parts:
    """Latents in two parts, as a folder of them gives them."""

    def __init__(self, mean, logvar):
        self.mean, self.logvar = mean, logvar

    def parts(self):
        for half in (slice(0, 30), slice(30, None)):
            yield {"mean": self.mean[half], "logvar": self.logvar[half]}


def test_latents_that_are_drawn_have_deviation_one_once_they_are_scaled():
    draws = np.random.default_rng(0)
    mean = (3 + 2 * draws.standard_normal((100, 4, 2, 2))).astype(np.float16)
    logvar = np.full(mean.shape, np.log(0.5), np.float16)
    factor, deviation = scaling_factor(Parts(mean, logvar))
    drawn = mean + np.exp(0.5 * logvar) * draws.standard_normal((50, *mean.shape))
    assert (factor * drawn).std() == pytest.approx(1, abs=0.02)
    assert deviation == pytest.approx(1 / factor, rel=1e-4)


def test_what_is_held_out_for_scoring_is_not_trained_on(tiny_images, tmp_path, capsys):
    words = [f"data.train={tiny_images}/train", f"storage={tmp_path / 'runs'}", "--status"]
    for more, images in (([], 36), (["data.validation_split=0.25"], 27)):
        assert run_command("pretrain", [*words, *more]) == 0
        assert f"of {images} images" in capsys.readouterr().out


def test_of_two_drivers_the_second_takes_the_first_s_folder_and_replaces_no_other(tmp_path):
    storage, out = open_storage(str(tmp_path / "runs")), tmp_path / "model"
    for name, words in (("first", "one"), ("second", "one"), ("third", "another")):
        (tmp_path / name / "vae").mkdir(parents=True)
        (tmp_path / name / "vae" / "config.json").write_text(words)
    move_to(tmp_path / "first", out, storage)
    move_to(tmp_path / "second", out, storage)
    with pytest.raises(InputError, match=r"--out: .*/model was made meanwhile and holds another model"):
        move_to(tmp_path / "third", out, storage)
    assert (out / "vae" / "config.json").read_text() == "one"


@pytest.mark.slow
def test_a_model_is_trained_checked_written_and_found_again(ray_cluster, tiny_images, tmp_path, capsys):
    words = [f"data.train={tiny_images}/train", f"storage={tmp_path / 'runs'}", "image_size=16"]
    words += [
        "vae.channels=[8,16,16]",
        "transformer.hidden_size=16",
        "transformer.depth=1",
        "extractor.width=8",
    ]
    words += [
        f"{name}.{field}"
        for name in ("vae", "transformer", "extractor")
        for field in ("steps=3", "batch_size=6")
    ]
    words += ["check_images=6", "workers.actors=2", "workers.train_workers=2"]
    assert run_command("pretrain", ["--dry-run", *words]) == 0
    assert capsys.readouterr().out.count("would run") == 5
    assert run_command("pretrain", ["--out", str(tmp_path / "model"), *words]) == 0
    info = inspect_generator(str(tmp_path / "model"))
    assert (info.image_size, info.num_classes) == (16, 3)
    (latents,) = (tmp_path / "runs" / "pretrain" / "latents").iterdir()
    assert json.loads((latents / "manifest.json").read_text())["rows"] == 36
    config = json.loads((tmp_path / "model" / "vae" / "config.json").read_text())
    factor = config["scaling_factor"]
    shown = capsys.readouterr().out
    assert f"scaling factor: {factor:.4g}" in shown
    assert job(next_commands(shown)["distil"])[0] == "distill"
    written = (tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert run_command("pretrain", ["--status", *words]) == 0
    assert capsys.readouterr().out.count("complete") == 5
    before = (latents / "manifest.json").stat().st_mtime_ns
    assert run_command("pretrain", ["--out", str(tmp_path / "again"), *words]) == 0
    assert (tmp_path / "again" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() == written
    assert (latents / "manifest.json").stat().st_mtime_ns == before
