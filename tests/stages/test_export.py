"""The product's card says of a run's images what that run did, and nothing else."""

import pytest

from ims3_ray.config.load import load_config
from ims3_ray.stages.export import made_in_words

IMAGES = {"select.unit": "image", "finetune.epochs": 0}


@pytest.mark.parametrize(
    ("recipe", "changes", "says", "says_not"),
    [
        ("digits-paper", {}, ("fine-tuned with Inversion-Matching", "Subgroup Sampling (IMS3"), ("refined",)),
        ("digits-paper", {"finetune.epochs": 0}, ("diffusion model, and",), ("fine-tuned", "IMS3")),
        ("digits-paper", {"select.subgroups": 1}, ("among no others",), ("Subgroup", "IMS3")),
        ("digits-paper", IMAGES, ("each chosen for itself",), ("fine-tuned", "Subgroup")),
        (
            "digits",
            {},
            ("each chosen for itself", "refined in 100 steps: their latents"),
            ("fine-tuned", "IMS3"),
        ),
        (
            "digits",
            {"refine.start": "medoids"},
            ("real images to begin with", "refined"),
            ("drawn", "diffusion"),
        ),
    ],
)
def test_the_card_says_what_this_run_did(recipe, changes, says, says_not):
    words = made_in_words(load_config(recipe, changes))
    assert all(part in words for part in says)
    assert not any(part in words for part in says_not)
