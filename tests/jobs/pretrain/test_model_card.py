"""The licence on a pretrained model's card: the one that was given for the images, or none."""

import pytest
import yaml
from tiny import CLASSES, write_images

from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Pretrain
from ims3_ray.data.images import open_images
from ims3_ray.jobs.pretrain.run import model_card
from ims3_ray.storage.artifacts import open_storage


@pytest.fixture
def front_matter(tmp_path):
    """front_matter(*overrides): of the card of a model that was trained on images of one's own."""
    place, storage = write_images(tmp_path / "birds", 2, seed=0), open_storage(str(tmp_path / "runs"))
    images = open_images(str(place), storage, seed=0, max_bad_fraction=0.0, classes=None, name="data.train")

    def of(*words):
        config = load_settings(Pretrain, parse_overrides([f"data.train={tmp_path}/birds", *words]))
        text = model_card(config, images, {"agreement": 0.5})
        assert f"{len(CLASSES)} classes" in text
        assert ("MNIST" in text) is config.data.train.startswith("package://digits")
        return yaml.safe_load(text.split("---\n")[1])

    return of


def test_a_model_of_ones_own_images_has_the_licence_that_was_given_for_them(front_matter):
    assert front_matter("data.licence=cc-by-4.0")["license"] == "cc-by-4.0"
    other = front_matter("data.licence={id: other, name: birds-terms, link: https://birds.example/terms}")
    assert other["license"] == "other"
    assert (other["license_name"], other["license_link"]) == ("birds-terms", "https://birds.example/terms")


def test_a_model_of_ones_own_images_has_no_licence_that_was_not_given(front_matter):
    front = front_matter()
    assert front["license"] == "unknown"
    assert not {"license_name", "license_link"} & set(front)
