"""The frozen extractor: features, saving and loading, refusals."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_generator import seeded

from ims3_ray.errors import InputError
from ims3_ray.models.classifiers import build
from ims3_ray.models.extractor import (
    embed_pixels,
    inspect_extractor,
    load_extractor,
    save_extractor,
    without_weights,
)

CPU = torch.device("cpu")
MEAN, DEVIATION = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)


def _saved(folder):
    model = build("convnet3", 3, 16, seeded(0), width=4)
    save_extractor(model, folder, mean=MEAN, deviation=DEVIATION)
    return model


def _pixels(rows: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 3, size, size), dtype=np.uint8)


def test_saved_classifier_gives_its_normalised_features(tmp_path):
    model = _saved(tmp_path)
    extractor = load_extractor(str(tmp_path))
    pixels = torch.from_numpy(_pixels(5))
    x = (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
    features = extractor(pixels.float() / 127.5 - 1).clone()
    assert extractor.dim == model.dim == features.shape[1]
    assert extractor.image_size == 16
    assert torch.allclose(features.norm(dim=1), torch.ones(5))
    exact = torch.nn.functional.normalize(model.features(x), dim=1)
    assert (features * exact).sum(dim=1).min() > 0.9999  # the file holds half precision
    expected = torch.nn.functional.normalize(model.half().float().features(x), dim=1)
    assert torch.allclose(features, expected, atol=1e-5)


def test_images_of_another_size_are_resized(tmp_path):
    _saved(tmp_path)
    extractor = load_extractor(str(tmp_path))
    small = torch.rand(1, 3, 16, 16, generator=seeded(1)) * 2 - 1
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert (extractor(small) * extractor(large)).sum() > 0.95


def test_features_do_not_depend_on_the_batch(tmp_path):
    _saved(tmp_path / "extractor")  # of a model folder
    pixels = _pixels(7)
    extractor = load_extractor(str(tmp_path))
    batch = embed_pixels(extractor, pixels, 4, CPU)
    single = np.concatenate([embed_pixels(extractor, pixels[row : row + 1], 4, CPU) for row in range(7)])
    assert batch.dtype == np.float32
    assert np.array_equal(batch, single)


def test_untrained_timm_features_are_of_unit_length_at_its_own_size_and_reproducible():
    state, spec = torch.get_rng_state(), "timm:test_resnet.r160_in1k?pretrained=false"
    extractor = load_extractor(spec)
    assert torch.equal(state, torch.get_rng_state())
    images = torch.rand(2, 3, 40, 40) * 2 - 1
    features = extractor(images).clone()
    assert torch.equal(features, load_extractor(spec)(images))
    assert features.shape == (2, extractor.dim)
    assert extractor.image_size == timm.get_pretrained_cfg("test_resnet.r160_in1k").input_size[-1]
    assert torch.allclose(features.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("timm:resnet_18", "resnet_18.*resnet18"),
        ("timm:resnet18?width=3", "pretrained.*'width=3'"),
        ("/nowhere/at/all", "no such model"),
    ],
)
def test_invalid_specs_are_refused(spec, word):
    with pytest.raises(InputError, match=word):
        load_extractor(spec)


def test_missing_timm_weights_are_refused_in_one_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise FileNotFoundError("no network\nand a second line")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(InputError, match=r"timm:resnet18: .*no network") as refused:
        load_extractor("timm:resnet18")
    assert "\n" not in str(refused.value)


def test_timm_folder_loads_without_network_access(tmp_path):
    model = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    spec, images = f"timm:{tmp_path}", torch.rand(2, 3, 40, 40) * 2 - 1
    extractor, untrained = load_extractor(spec), load_extractor(without_weights(spec))
    features = extractor(images)
    again = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=0)
    again.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("fc.")})
    extractor._body = again.eval()
    assert torch.equal(extractor(images), features)
    assert not torch.equal(untrained(images), features)
    assert inspect_extractor(spec) == tmp_path
    assert untrained.dim == extractor.dim
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="architecture"):
        inspect_extractor(spec)
    with pytest.raises(InputError, match=r"nowhere/config\.json"):
        load_extractor(f"timm:{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (None, r"config\.json"),
        ({"num_classes": 7}, r"fc\.bias is \(3,\), not \(7,\)"),
        ({"network": None}, r"config\.json: network: "),
        ({}, "convnet3"),  # weights of another model
    ],
)
def test_other_folders_are_refused(tmp_path, change, word):
    if change is not None:
        _saved(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text()) | change
        (tmp_path / "config.json").write_text(json.dumps(config))
    if change == {}:
        save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=word):
        load_extractor(str(tmp_path))
