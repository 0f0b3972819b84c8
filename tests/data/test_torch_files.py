"""Sets of tensors, as the field's code saves them."""

import numpy as np
import pytest
import torch
from flat import opened, values

from ims3_ray.data.images import open_labelled
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import open_storage

MEAN, DEVIATION = 0.25, 0.5
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
GREYS = torch.arange(6).view(6, 1, 1, 1).expand(6, 1, 8, 8) * 40
EXPECTED = [("0", 0), ("0", 120), ("1", 40), ("1", 160), ("2", 80), ("2", 200)]


class Other:
    """What no set of tensors holds."""


@pytest.fixture
def normalised(tmp_path):
    """As the code of Zhao et al. saves its results: normalised images, accuracies as NumPy's numbers."""
    images = (GREYS / 255 - MEAN) / DEVIATION
    held = {"data": [[images, LABELS], [images * 0, LABELS]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}
    torch.save(held, tmp_path / "res_DC.pt")
    return tmp_path / "res_DC.pt"


def test_published_results_are_the_pixels_that_were_normalised(normalised, tmp_path):
    place = f"{normalised}?mean={MEAN}&deviation={DEVIATION}"
    assert values(opened(place, tmp_path)) == EXPECTED


def test_images_find_their_labels_beside_them(tmp_path):
    torch.save(GREYS.expand(6, 3, 8, 8).byte(), tmp_path / "images_best.pt")
    torch.save(LABELS, tmp_path / "labels_best.pt")
    assert values(opened(tmp_path / "images_best.pt", tmp_path)) == EXPECTED


@pytest.mark.parametrize("make", [lambda x, y: (x, y), lambda x, y: {"images": x, "labels": y}])
def test_values_of_0_to_1_need_no_word(make, tmp_path):
    torch.save(make(GREYS / 255, LABELS), tmp_path / "any.pt")
    assert values(opened(tmp_path / "any.pt", tmp_path)) == EXPECTED


def test_labels_count_the_classes_in_the_order_of_the_scored_images_own_numbers(tmp_path):
    torch.save((GREYS / 255, LABELS), tmp_path / "any.pt")
    storage, shared = open_storage(str(tmp_path / "s")), {"name": "--set", "seed": 0, "max_bad_fraction": 0}
    known = ("bag", "coat", "top")
    given = open_labelled(
        f"{tmp_path / 'any.pt'}", storage, scored_classes=known, label_names=("top", "bag", "coat"), **shared
    )
    assert values(given) == [("bag", 40), ("bag", 160), ("coat", 80), ("coat", 200), ("top", 0), ("top", 120)]


def test_a_cut_is_told(tmp_path, caplog):
    torch.save((GREYS / 100, LABELS), tmp_path / "any.pt")
    opened(f"{tmp_path / 'any.pt'}?mean=0&deviation=1", tmp_path)
    assert "50 % of the values lie outside" in caplog.text


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (GREYS, "holds images alone"),
        ((GREYS / 255, LABELS[:3]), r"labels of the shape \(6,\)"),
        ((GREYS / 255, LABELS.float()), "no integer label"),
        ((GREYS[0], LABELS), "no images"),
        ((GREYS - 100, LABELS), "say what they were normalised by"),
        ((GREYS / 0, LABELS), "say what|not finite"),
        ({"model": 1}, "no images"),
        (Other(), "no torch file of plain tensors"),
        (np.zeros(3), "no torch file of plain tensors|holds no"),
    ],
)
def test_a_file_of_other_things_gets_a_line(held, told, tmp_path):
    torch.save(held, tmp_path / "any.pt")
    with pytest.raises(InputError, match=told):
        opened(tmp_path / "any.pt", tmp_path)


def test_a_file_that_is_not_there_gets_a_line(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        opened(tmp_path / "none.pt", tmp_path)
