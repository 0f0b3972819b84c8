"""The licences that a distilled set's card states, and when a recipe's no longer speak of it."""

import pytest
import yaml

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.data.distilled import card
from ims3_ray.errors import InputError


def front_matter(recipe, *words):
    config = load_config(recipe, parse_overrides(list(words)))
    licences = {
        name: section.licence.model_dump() if section.licence else None
        for name, section in (("weights", config.model), ("images", config.data))
    }
    text = card(1, ["a"], recipe, recipe, "0" * 12, licences, "drawn.")
    return yaml.safe_load(text.split("---\n")[1]), text


def test_a_card_states_the_licences_of_weights_and_images_as_the_hub_reads_them():
    front, text = front_matter("imagewoof")
    assert front["license"] == ["cc-by-nc-4.0", "other"]
    assert front["license_name"] == "imagenet-terms-of-access"
    assert front["license_link"].startswith("https://www.image-net.org/")
    assert "weights: cc-by-nc-4.0" in text
    assert "real images: imagenet-terms-of-access, https://" in text
    assert front_matter("digits")[0]["license"] == ["apache-2.0", "cc-by-sa-3.0"]
    same = front_matter("digits", "data.licence=apache-2.0")[0]
    assert same["license"] == "apache-2.0"
    assert "license_name" not in same


def test_a_recipes_licence_is_not_said_of_other_images_or_weights():
    front, text = front_matter("digits", "data.train=/my/images", "model.path=/my/model")
    assert front["license"] == "unknown"
    assert "real images: not stated (data.licence" in text
    assert front_matter("imagewoof", "model.path=/my/DiT")[0]["license"] == ["unknown", "other"]
    assert front_matter("imagewoof", "data.class_map=new")[0]["license"] == ["cc-by-nc-4.0", "unknown"]
    assert front_matter("imagewoof", "data.train=/data/imagenet/train")[0]["license"] == [
        "cc-by-nc-4.0",
        "other",
    ]
    kept = front_matter("imagewoof", "model.path=/my/DiT-XL-2-256", "model.licence=cc-by-nc-4.0")[0]
    assert kept["license"] == ["cc-by-nc-4.0", "other"]
    assert load_config("digits", {"data": {"train": "/mine"}}).data.licence is None
    assert load_config("digits", {"data": {"train": "/mine", "licence": "mit"}}).data.licence.id == "mit"


@pytest.mark.parametrize("given", ["other", "{id: mit, name: x}", "CC BY", "{id: other, link: x}"])
def test_a_licence_that_the_hub_cannot_read_is_refused(given):
    with pytest.raises(InputError, match=r"data\.licence"):
        load_config("digits", parse_overrides([f"data.licence={given}"]))
