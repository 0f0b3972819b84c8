"""Cheap checks run before torch, Ray, images and the storage."""

import json

import pytest
from planned import config_of
from processes import python

from ims3_ray.cluster.resources import Machine
from ims3_ray.errors import InputError
from ims3_ray.pipeline import prepare

RUN = """
import json, sys
from ims3_ray.cli import main
codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps([codes, sorted({"torch", "ray", "diffusers", "timm", "mlflow"} & set(sys.modules))]))
"""
WRONG = [
    "model.path=package://digit",
    "model.path=/nope",
    "model.vae=/nope",
    "embed.extractor=/nope",
    "data.train=/nope",
    "data.train=/nope.pt",
    "data.train=package://digit/train",
    "data.train=relative-typo",
    "evaluate.protocol=nope",
    "probe.protocol=nope",
    "storage=/proc/x",
]


def test_cheap_checks_fail_before_heavy_imports_and_writes(tmp_path):
    storage = f"storage={tmp_path / 'runs'}"
    commands = [["distill", *more, storage, word] for word in WRONG for more in ([], ["--dry-run"])]
    commands.append(["evaluate", "--set=x", storage, "data.test=/nope", "data.train=/nope"])
    done = python(RUN, json.dumps(commands), cwd=tmp_path, timeout=100)
    assert json.loads(done.stdout) == [[2] * len(commands), []], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands)
    for line, command in zip(lines, commands, strict=True):
        assert line.startswith(f"error: {command[-1].partition('=')[0].split('.')[0]}")
    assert not list(tmp_path.iterdir())


def test_model_is_inspected_before_images_are_listed(tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "open_splits", lambda *_: pytest.fail("images were listed"))
    (tmp_path / "unet" / "transformer").mkdir(parents=True)
    (tmp_path / "unet" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    config = config_of(tiny_overrides, f"model.path={tmp_path / 'unet'}")
    with pytest.raises(InputError, match="StableDiffusionPipeline"):
        prepare.prepare(config, Machine("cpu", 2, 0, 8e9, config.workers))
    assert not (tmp_path / "runs").exists()
