"""`ims3_ray.score`: the same accuracies as an evaluation of the same images, and its checks."""

import re

import numpy as np
import pytest
import torch
from flat import opened
from processes import ROOT
from tiny import write_images

import ims3_ray
from ims3_ray.data.transforms import decode
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.models.device import Numerics
from ims3_ray.stages.evaluate.classifiers import stream_score


def arrays(images):
    """(N, 3, H, W) uint8 and labels of a set."""
    pixels = [np.asarray(decode(images.directory.read(path))).transpose(2, 0, 1) for path in images.paths]
    return np.stack(pixels), images.labels


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Training and test images, 20 pixels per side, which the protocol scales to 16."""
    folder = tmp_path_factory.mktemp("sets")
    return [opened(write_images(folder / f"{seed}", count, seed), folder) for count, seed in ((3, 0), (5, 1))]


def test_arrays_give_the_accuracies_of_an_evaluation_of_the_same_files(sets):
    train, test = sets
    images, labels = arrays(train)
    smoke = get_protocol("smoke")
    expected = [list(stream_score(train, test, smoke, s, "cpu", None))[-1].last for s in (0, 1)]
    threads = torch.get_num_threads()
    result = ims3_ray.score(images, labels, test=arrays(test), protocol="smoke", seeds=2, device="cpu")
    assert list(result.accuracies) == expected
    assert (result.mean, result.protocol) == (pytest.approx(np.mean(expected)), "smoke-v2/convnet3-w8")
    assert torch.get_num_threads() == threads
    floats = torch.from_numpy(images) / 255
    place = test.directory.uri
    again = ims3_ray.score(floats, labels, test=place, protocol="smoke", seeds=[1], device="cpu")
    assert again.accuracies == result.accuracies[1:]
    assert again.std is None


def test_a_score_in_other_numerics_says_so(sets, monkeypatch):
    numerics = Numerics("cpu", "bf16")
    monkeypatch.setattr("ims3_ray.evaluation.train.numerics_for", lambda kind, steps: numerics)
    options = {"test": arrays(sets[1]), "protocol": "smoke", "seeds": 1, "device": "cpu"}
    assert ims3_ray.score(*arrays(sets[0]), **options).protocol == "smoke-v2/convnet3-w8 (bf16)"


def test_one_hot_probabilities_score_as_their_labels_do(sets):
    images, labels = arrays(sets[0])
    hot = torch.nn.functional.one_hot(torch.from_numpy(labels)).float()
    options = {"test": arrays(sets[1]), "protocol": "smoke", "seeds": 1, "device": "cpu"}
    hard, soft = (ims3_ray.score(images, y, **options) for y in (labels, hot))
    assert soft.accuracies == hard.accuracies
    mixed = (hot + hot.roll(1, 0)) / 2
    assert 0 <= ims3_ray.score(images, mixed, **options).mean <= 1


GOOD = {"images": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.array([0, 1, 0, 1]), "protocol": "smoke"}
GOOD["test"] = (GOOD["images"], GOOD["labels"])


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("images", np.zeros((4, 8, 8, 3), np.uint8), "(4, 8, 8, 3)"),
        ("images", np.zeros((3, 8, 8), np.uint8), "(3, 8, 8)"),
        ("images", np.full((4, 3, 8, 8), 1.5), "1.5"),
        ("images", np.full((4, 3, 8, 8), np.nan), "nan"),
        ("images", np.zeros((4, 3, 8, 8), np.int64), "int64"),
        ("labels", np.array([0, 1, 0]), "(3,)"),
        ("labels", np.array([0, -1, 0, 1]), "-1"),
        ("labels", np.array([0.0, 1.0, 0.0, 1.0]), "float64"),
        ("labels", np.full((4, 2), 0.7), "probabilities"),
        ("test", (GOOD["images"], np.full((4, 2), 0.5)), "test labels"),
        ("test", (GOOD["images"][:, 0], GOOD["labels"]), "test images"),
        ("labels", np.zeros(4, np.int64), "no training image for class 1"),
        ("test", "/nowhere", "/nowhere"),
        ("protocol", "soft", "teacher"),
        ("protocol", "fast", "'fast'"),
        ("network", "convnet6", "convnet6"),
        ("seeds", 0, "seeds"),
        ("device", "tpu", "'tpu'"),
    ],
)
def test_an_invalid_argument_is_refused_by_name(field, value, names):
    with pytest.raises(InputError) as error:
        ims3_ray.score(**{"device": "cpu", "seeds": 1, **GOOD, field: value})
    assert names in str(error.value)
    assert field.partition("_")[0] in str(error.value) or field == "network"


def test_the_example_of_the_docs_runs(capsys):
    section = (ROOT / "docs/evaluate.md").read_text().partition("## From Python")[2]
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], {})
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d %\n", capsys.readouterr().out)
