"""Named sets: classes of torchvision and data sets of Hugging Face."""

import struct

import datasets
import numpy as np
import pytest
from flat import png, run_splits, values

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.runs import plan_cache


def idx(values):
    """Returns the format of MNIST's files: sizes, then unsigned bytes."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def root(tmp_path):
    """Fashion-MNIST's four files with two training images and one test image per class."""
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count, first in (("train", 20, 0), ("t10k", 10, 100)):
        places = np.arange(count)
        pixels = np.broadcast_to((first + places)[:, None, None], (count, 28, 28)).astype(np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx((places % 10).astype(np.uint8)))
    return tmp_path / "root"


@pytest.fixture
def offline(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)  # it caches the proxies
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def fashion(root):
    return ("data.train=torchvision:FashionMNIST", "data.test=null", f"data.root={root}")


def sizes(sets):
    return {name: len(images) for name, images in sets.items()}


def test_a_set_of_torchvision_has_both_splits_and_class_names_and_is_read_once(root, tmp_path):
    sets = run_splits(tmp_path / "storage", *fashion(root))
    assert sizes(sets) == {"train": 20, "test": 10}
    assert ("T-shirt-top", 0) in values(sets["train"])
    assert ("Trouser", 101) in values(sets["test"])
    for file in root.rglob("*-ubyte"):
        file.unlink()
    again = run_splits(tmp_path / "storage", *fashion(root))
    assert again["train"].fingerprint == sets["train"].fingerprint


def test_part_of_a_named_set_is_held_out_if_it_has_no_validation_split(root, tmp_path):
    words = ("data.validation_split=0.5", "data.validation=null", "evaluate.protocol=quick-val")
    sets = run_splits(tmp_path / "storage", *fashion(root), *words)
    assert sizes(sets) == {"train": 10, "validation": 10}


def test_a_slash_in_a_class_name_of_the_hub_becomes_a_dash(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a/b", "c"])}
    )
    for split in ("train", "test"):
        cells = {"image": [{"bytes": png(len(split) + i), "path": None} for i in (0, 9)], "label": [0, 1]}
        datasets.Dataset.from_dict(cells, features=features).to_parquet(tmp_path / "set" / f"{split}.parquet")
    sets = run_splits(tmp_path / "storage", f"data.train=hf:{tmp_path / 'set'}", "data.test=null")
    assert sets["train"].classes == sets["test"].classes == ("a-b", "c")


def test_rows_from_the_hub_equal_the_same_rows_in_files_also_after_some_classes_were_read(tmp_path):
    labels = datasets.ClassLabel(names=["b", "a", "c"])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    place = tmp_path / "set"
    for split, first in (("train", 0), ("test", 4)):
        cells = {"image": [{"bytes": png(first + i), "path": None} for i in range(4)], "label": [0, 1, 2, 0]}
        rows = datasets.Dataset.from_dict(cells, features=features)
        rows.to_parquet(place / f"{split}-00000-of-00001.parquet")
    words = tmp_path / "storage", f"data.train=hf:{place}", "data.test=null"
    some, named = run_splits(*words, "data.classes=[a,b]"), run_splits(*words)
    assert (some["train"].classes, named["train"].classes) == (("a", "b"), ("a", "b", "c"))
    files = run_splits(tmp_path / "storage", f"data.train={place}", f"data.test={place}")
    for name in ("train", "test"):
        assert values(named[name]) == values(files[name])
        assert named[name].fingerprint == files[name].fingerprint


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("torchvision:FashionMnist", "FashionMNIST"),
        ("torchvision:CIFAR10", r"can't be downloaded.*data\.root"),
        ("torchvision:MNIST", "train-images-idx3-ubyte.*MNIST/raw"),
        ("torchvision:SVHN?split=extras", "Valid values are"),
        ("torchvision:SVHN?extra", r"'extra'; write options as \?name=value"),
        ("torchvision:EuroSAT", "EuroSAT"),
        ("hf:nobody/nothing", "can't be loaded"),
    ],
)
def test_a_missing_set_or_split_is_an_error(place, problem, tmp_path, offline):
    words = [f"data.train={place}", "data.test=null"]
    words += [f"data.root={tmp_path / 'none'}"] if place.startswith("torchvision") else []
    with pytest.raises(InputError, match=problem):
        run_splits(tmp_path / "storage", *words)


def test_the_signature_of_a_run_on_a_named_set_follows_its_files(root):
    config = load_config("digits", parse_overrides(fashion(root)))
    before = plan_cache.signature(config)
    next(root.rglob("t10k-labels*")).write_bytes(idx(np.zeros(10, np.uint8)))
    assert before != plan_cache.signature(config) is not None
    hub = load_config("digits", parse_overrides(["data.train=hf:org/name"]))
    assert plan_cache.signature(hub) is None
