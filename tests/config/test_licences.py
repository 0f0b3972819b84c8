"""Licences on the card of a distilled set, and when a recipe's licence no longer applies."""

import pytest
import yaml

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.data.distilled import Method, card
from ims3_ray.errors import InputError


def front_matter(recipe, *words):
    config = load_config(recipe, parse_overrides(list(words)))
    licences = {
        name: section.licence.model_dump() if section.licence else None
        for name, section in (("weights", config.model), ("images", config.data))
    }
    text = card(1, ["a"], recipe, recipe, "0" * 12, licences, Method("synthetic", "drawn."))
    return yaml.safe_load(text.split("---\n")[1]), text


def test_a_card_states_the_licences_of_weights_and_images_in_the_hubs_format():
    front, text = front_matter("imagewoof")
    assert front["license"] == ["cc-by-nc-4.0", "other"]
    assert front["license_name"] == "imagenet-terms-of-access"
    assert front["license_link"].startswith("https://www.image-net.org/")
    assert "weights: cc-by-nc-4.0" in text
    assert "real images: imagenet-terms-of-access, https://" in text
    same = front_matter("digits", "data.licence=apache-2.0")[0]
    assert same["license"] == "apache-2.0"
    assert "license_name" not in same


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        ("digits", ["data.train=/my/images", "model.path=/my/model"], "unknown"),
        ("digits", ["data.train=/my/images", "data.licence=mit"], ["apache-2.0", "mit"]),
        ("imagewoof", ["model.path=/my/DiT"], ["unknown", "other"]),
        ("imagewoof", ["data.class_map=new"], ["cc-by-nc-4.0", "unknown"]),
        ("imagewoof", ["data.train=/data/imagenet/train"], ["cc-by-nc-4.0", "other"]),
        ("imagewoof", ["model.path=/my/DiT", "model.licence=cc-by-nc-4.0"], ["cc-by-nc-4.0", "other"]),
    ],
)
def test_a_recipes_licence_does_not_apply_to_other_images_or_weights(recipe, words, expected):
    front, text = front_matter(recipe, *words)
    assert front["license"] == expected
    assert ("not stated" in text) == ("unknown" in expected)


@pytest.mark.parametrize("value", ["other", "{id: mit, name: x}", "CC BY", "{id: other, link: x}"])
def test_a_licence_that_the_hub_cannot_read_is_refused(value):
    with pytest.raises(InputError, match=r"data\.licence"):
        load_config("digits", parse_overrides([f"data.licence={value}"]))
