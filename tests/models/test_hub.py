"""Weights of a hub: every node loads the commit that the driver pinned."""

import json
from pathlib import Path

import pytest
import timm
import torch
from loopback_hub import use_cache

from ims3_ray.config.load import load_config
from ims3_ray.errors import InputError
from ims3_ray.models.extractor import inspect_extractor, load_extractor, without_weights
from ims3_ray.models.files import pin_revision, resolve_model
from ims3_ray.pipeline.prepare import pinned

MODEL = "timm/test_resnet.r160_in1k"  # weights of timm's smallest model


def model_folder(folder, word):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"word": word}))
    (folder / "model.safetensors").write_bytes(word.encode())
    return folder


def test_node_loads_the_pinned_commit_after_main_has_moved(hub, monkeypatch, tmp_path):
    first = hub.push("someone/model", model_folder(tmp_path / "first", "first"))
    pinned_id = pin_revision("someone/model")
    assert pinned_id == f"someone/model@{first}"
    second = hub.push("someone/model", model_folder(tmp_path / "second", "second"))
    use_cache(monkeypatch, tmp_path / "node")
    assert (resolve_model(pinned_id) / "model.safetensors").read_text() == "first"
    assert (resolve_model("someone/model") / "model.safetensors").read_text() == "second"
    assert pin_revision("someone/model@main") == f"someone/model@{second}"
    assert pin_revision(pinned_id) == pinned_id


def test_timm_weights_can_be_pinned_to_a_revision(hub, monkeypatch, tmp_path):
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        model = timm.create_model("test_resnet.r160_in1k", pretrained=False)
        timm.models.save_for_hf(model, tmp_path / name, safe_serialization=True)
    images, spec = torch.rand(2, 3, 40, 40) * 2 - 1, "timm:test_resnet.r160_in1k"
    pinned_id = f"{spec}@{hub.push(MODEL, tmp_path / 'first')}"
    features = load_extractor(spec)(images)
    hub.push(MODEL, tmp_path / "second")
    use_cache(monkeypatch, tmp_path / "node")
    assert torch.equal(load_extractor(pinned_id)(images), features)
    assert not torch.equal(load_extractor(spec)(images), features)
    assert inspect_extractor(pinned_id) != inspect_extractor(spec)
    assert load_extractor(without_weights(pinned_id)).dim == features.shape[1]


def test_hf_prefix_always_means_the_hub(hub, monkeypatch, tmp_path):
    commit = hub.push("someone/model", model_folder(tmp_path / "model", "there"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert (
        pin_revision("hf://someone/model")
        == pin_revision(f"hf://someone/model@{commit}")
        == f"someone/model@{commit}"
    )
    assert (resolve_model("hf://someone/model") / "model.safetensors").read_text() == "there"
    assert resolve_model("someone/model") == Path("someone/model")


def test_other_paths_are_not_changed_and_missing_files_cause_no_network_access(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("network call"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    missing = ("nowhere/DiT-XL-2-256x256.pt", "nowhere/vae.safetensors")
    places = ("package://digits", str(tmp_path), "mine/model", "timm:resnet18", f"timm:{tmp_path}")
    for place in (*places, *missing):
        assert pin_revision(place) == place
    config = load_config("digits")
    assert pinned(config) == config
    for name in missing:
        with pytest.raises(InputError, match=f"{name}: no such"):
            resolve_model(name)


def test_a_generator_comes_with_its_extractor(hub, tmp_path):
    for part in ("transformer", "vae", "extractor", "elsewhere"):
        (tmp_path / "model").mkdir(exist_ok=True)
        model_folder(tmp_path / "model" / part, part)
    hub.push("someone/model", tmp_path / "model")
    parts = {file.parent.name for file in resolve_model("hf://someone/model").rglob("*.safetensors")}
    assert parts == {"transformer", "vae", "extractor"}


def test_a_run_pins_every_model(hub, tmp_path):
    for name in ("model", "vae", "extractor"):
        hub.push(f"someone/{name}", model_folder(tmp_path / name, name))
    model = {"path": "someone/model", "vae": "someone/vae"}
    config = pinned(load_config("digits", {"model": model, "embed.extractor": "someone/extractor"}))
    for place in (config.model.path, config.model.vae, config.embed.extractor):
        assert len(place.partition("@")[2]) == 40, place


def test_missing_revision_is_refused_in_one_line(hub, tmp_path):
    hub.push("someone/model", model_folder(tmp_path / "model", "model"))
    for name in ("someone/model@" + "0" * 40, "someone/model@v9", "nobody/model"):
        with pytest.raises(InputError, match=f"{name}: no such") as refused:
            resolve_model(name)
        assert "\n" not in str(refused.value)


def test_recipe_settings_of_a_model_apply_to_every_revision():
    default, revised, other = (
        load_config("imagewoof", {"model.path": path} if path else {}).model
        for path in (None, "hf://facebook/DiT-XL-2-256@v1", "someone/DiT-XL-2-256")
    )
    assert revised.frequency_shift == default.frequency_shift == 0
    assert revised.licence == default.licence
    assert other.frequency_shift is None
