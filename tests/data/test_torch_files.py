"""Image sets in torch files, as published code saves them."""

import numpy as np
import pytest
import torch
from flat import labelled, opened, values

from ims3_ray.errors import InputError

MEAN, DEVIATION = 0.25, 0.5
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
GREYS = torch.arange(6).view(6, 1, 1, 1).expand(6, 1, 8, 8) * 40
EXPECTED = [("0", 0), ("0", 120), ("1", 40), ("1", 160), ("2", 80), ("2", 200)]


class Other:
    """An object that is no tensor."""


def test_published_results_become_the_original_pixels(tmp_path):
    """The code of Zhao et al. saves normalised images, and accuracies as NumPy scalars."""
    images = (GREYS / 255 - MEAN) / DEVIATION
    data = [[images, LABELS], [images * 0, LABELS]]
    torch.save({"data": data, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, tmp_path / "res_DC.pt")
    assert values(opened(f"{tmp_path}/res_DC.pt?mean={MEAN}&deviation={DEVIATION}", tmp_path)) == EXPECTED


def test_labels_are_read_from_the_file_beside_the_images(tmp_path):
    torch.save(GREYS.expand(6, 3, 8, 8).byte(), tmp_path / "images_best.pt")
    torch.save(LABELS, tmp_path / "labels_best.pt")
    assert values(opened(tmp_path / "images_best.pt", tmp_path)) == EXPECTED
    torch.save(LABELS.flip(0), tmp_path / "labels_best.pt")
    assert values(opened(tmp_path / "images_best.pt", tmp_path)) != EXPECTED


@pytest.mark.parametrize("make", [lambda x, y: (x, y), lambda x, y: {"images": x, "labels": y}])
def test_values_in_0_to_1_need_no_normalisation_and_classes_filter(make, tmp_path):
    torch.save(make(GREYS / 255, LABELS), tmp_path / "any.pt")
    assert values(opened(tmp_path / "any.pt", tmp_path)) == EXPECTED
    assert values(opened(tmp_path / "any.pt", tmp_path, classes=("0", "1"))) == EXPECTED[:4]


def test_labels_count_the_label_names_of_the_scored_images(tmp_path):
    torch.save((GREYS / 255, LABELS), tmp_path / "any.pt")
    names = {"label_names": ("top", "bag", "coat")}
    given = labelled(tmp_path / "any.pt", tmp_path, ("bag", "coat", "top"), **names)
    assert values(given) == [("bag", 40), ("bag", 160), ("coat", 80), ("coat", 200), ("top", 0), ("top", 120)]


def test_clipping_is_logged(tmp_path, caplog):
    torch.save((GREYS / 100, LABELS), tmp_path / "any.pt")
    opened(f"{tmp_path / 'any.pt'}?mean=0&deviation=1", tmp_path)
    assert "50 % of the values" in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GREYS, "holds only images"),
        ((GREYS / 255, LABELS[:3]), r"labels of the shape \(6,\)"),
        ((GREYS / 255, LABELS.float()), "no integer label"),
        ((GREYS[0], LABELS), "no images"),
        ((GREYS[:0], LABELS[:0]), "no images"),
        ((GREYS - 100, LABELS), "normalisation"),
        ((GREYS / 0, LABELS), "normalisation|not finite"),
        ({"model": 1}, "no images"),
        (Other(), "no torch file of plain tensors"),
        (np.zeros(3), "no torch file of plain tensors|holds no"),
    ],
)
def test_other_content_is_an_error(content, problem, tmp_path):
    torch.save(content, tmp_path / "any.pt")
    with pytest.raises(InputError, match=problem):
        opened(tmp_path / "any.pt", tmp_path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        opened(tmp_path / "none.pt", tmp_path)
