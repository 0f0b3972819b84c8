"""Named sets: classes of torchvision and data sets of Hugging Face."""

import struct

import datasets
import numpy as np
import pytest
from flat import png, values

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.pipeline.inputs import image_places
from ims3_ray.pipeline.prepare import open_splits
from ims3_ray.runs import plan_cache
from ims3_ray.storage.artifacts import open_storage

CLASSES = 10


def idx(values):
    """Returns the format of MNIST's files: sizes, then unsigned bytes."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def root(tmp_path):
    """Fashion-MNIST's four files with two training images and one test image per class."""
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, per_class, first in (("train", 2, 0), ("t10k", 1, 100)):
        labels = np.tile(np.arange(CLASSES), per_class).astype(np.uint8)
        pixels = np.broadcast_to(np.arange(first, first + len(labels))[:, None, None], (len(labels), 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(pixels.astype(np.uint8)))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path / "root"


@pytest.fixture
def offline(monkeypatch):
    """No network."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)  # it caches the proxies
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def splits(tmp_path, *words):
    config = load_config("digits", parse_overrides([*words, "evaluate.protocol=smoke"]))
    return open_splits(image_places(config), config.data, 0, open_storage(str(tmp_path / "storage")))


def fashion(root):
    return ("data.train=torchvision:FashionMNIST", "data.test=null", f"data.root={root}")


def test_a_set_of_torchvision_has_both_splits_and_class_names(root, tmp_path):
    sets = splits(tmp_path, *fashion(root))
    assert {name: len(images) for name, images in sets.items()} == {"train": 20, "test": 10}
    assert ("T-shirt-top", 0) in values(sets["train"])
    assert ("Trouser", 101) in values(sets["test"])


def test_a_set_of_torchvision_is_read_once(root, tmp_path):
    first = splits(tmp_path, *fashion(root))["train"]
    for file in root.rglob("*-ubyte"):
        file.unlink()
    assert splits(tmp_path, *fashion(root))["train"].fingerprint == first.fingerprint


def test_part_of_a_named_set_is_held_out_if_it_has_no_validation_split(root, tmp_path):
    words = ("data.validation_split=0.5", "data.validation=null", "evaluate.protocol=quick-val")
    config = load_config("digits", parse_overrides([*fashion(root), *words]))
    sets = open_splits(image_places(config), config.data, 0, open_storage(str(tmp_path / "storage")))
    assert {name: len(images) for name, images in sets.items()} == {"train": 10, "validation": 10}


def test_rows_from_the_hub_equal_the_same_rows_in_files(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    for split, first in (("train", 0), ("test", 4)):
        cells = {"image": [{"bytes": png(first + i), "path": None} for i in range(4)], "label": [0, 1, 1, 0]}
        rows = datasets.Dataset.from_dict(cells, features=features)
        rows.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    sets = splits(tmp_path, f"data.train=hf:{tmp_path / 'set'}", "data.test=null")
    files = splits(tmp_path, f"data.train={tmp_path / 'set'}", f"data.test={tmp_path / 'set'}")
    for name in ("train", "test"):
        assert values(sets[name]) == values(files[name])
        assert sets[name].fingerprint == files[name].fingerprint


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("data.train=torchvision:FashionMnist", "did you mean .*FashionMNIST"),
        ("data.train=torchvision:CIFAR10 data.root=DIR", "not below .*can't be downloaded.*data.root"),
        ("data.train=torchvision:MNIST data.root=DIR", "put train-images-idx3-ubyte.* into .*MNIST/raw"),
        ("data.train=torchvision:SVHN?split=extras data.root=DIR", "Valid values are"),
        ("data.train=torchvision:EuroSAT data.root=DIR", "EuroSAT"),
        ("data.train=hf:nobody/nothing", "can't be loaded"),
    ],
)
def test_a_missing_set_or_split_is_an_error(words, problem, tmp_path, offline):
    with pytest.raises(InputError, match=problem):
        splits(tmp_path, *words.replace("DIR", str(tmp_path / "none")).split(), "data.test=null")


def test_the_signature_of_a_run_on_a_named_set_follows_its_files(root):
    config = load_config("digits", parse_overrides(fashion(root)))
    before = plan_cache.signature(config)
    next(root.rglob("t10k-labels*")).write_bytes(idx(np.zeros(CLASSES, np.uint8)))
    assert before != plan_cache.signature(config) is not None
    hub = load_config("digits", parse_overrides(["data.train=hf:org/name"]))
    assert plan_cache.signature(hub) is None
