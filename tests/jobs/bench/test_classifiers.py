"""The plain way of training a classifier, which this project's is measured beside: the same protocol, the
same views.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from ims3_ray.evaluation.augment import augment
from ims3_ray.evaluation.protocols import protocol
from ims3_ray.jobs.bench.classifiers import OwnTraining, PlainTraining, Task, trained_images
from ims3_ray.jobs.bench.classifiers_plain import stock, training_view
from ims3_ray.models.classifiers import Halve, build


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _spread_apart(found: torch.Tensor, expected: torch.Tensor, rounding: float) -> tuple[float, float]:
    """Of draws (N, ...): largest distance of means beyond `rounding` in standard errors, and of deviations as
    a share.
    """
    error = (found.var(0) / len(found) + expected.var(0) / len(expected)).sqrt()
    means = ((found.mean(0) - expected.mean(0)).abs() - rounding).clamp(min=0) / error
    return means.max().item(), (found.std(0) / expected.std(0) - 1).abs().max().item()


@pytest.mark.parametrize("name", ["quick", "minimax"])
def test_whole_views_have_the_means_and_deviations_of_the_pil_path(name):
    rules = protocol(name).model_copy(update={"image_size": 8})
    # A smooth image of middling values: PIL rounds and clips where the published colour operations do not.
    ramp = np.linspace(100, 150, 8)
    image = np.stack(
        (ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, (ramp[:, None] + ramp) / 2), -1
    ).astype(np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        view = training_view(rules)
        expected = torch.stack([view(Image.fromarray(image)) for _ in range(1000)])
    pixels = torch.from_numpy(image).permute(2, 0, 1).expand(3000, 3, 8, 8)
    half_a_grey_level = 0.5 / 255 / min(rules.deviation)
    means, deviations = _spread_apart(augment(pixels, rules, _seeded()), expected, half_a_grey_level)
    assert means < 5
    assert deviations < 0.15


def test_stock_modules_make_the_same_network():
    own, plain = (build("convnet3", 4, 16, _seeded(), width=8) for _ in range(2))
    plain = stock(plain)
    assert not any(isinstance(module, Halve) for module in plain.modules())
    x = torch.randn(3, 3, 16, 16, generator=_seeded(1))
    assert torch.allclose(own(x), plain(x), atol=1e-6)


@pytest.mark.parametrize("side", [OwnTraining, PlainTraining])
def test_either_side_learns_what_can_be_learnt_from_folders(tmp_path, side):
    draws = np.random.default_rng(0)
    for name in ("train", "scored"):
        for tint, label in enumerate(("blue", "red")):
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(6):
                pixels = draws.integers(0, 100, (16, 16, 3))
                pixels[..., 2 * tint] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / label / f"{index}.png")
    rules = protocol("smoke").model_copy(update={"steps": 25, "learning_rate": 0.05})
    task = Task(tmp_path, rules, "cpu", 0, train_images=12, scored_images=12, num_classes=2)
    assert trained_images(task) == 25 * 16
    assert side(task, seed=1)() == side(task, seed=1)() > 0.9
