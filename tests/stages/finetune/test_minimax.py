"""Minimax Diffusion's criteria over its memories."""

import pytest
import torch

from ims3_ray.stages.finetune.task import MinimaxMemory


def batch():
    k = torch.arange(32.0).view(4, 2, 2, 2)
    return 1.5 * torch.sin(1.3 * k), 1.2 * torch.cos(0.7 * k)


def steps(memory, *batches):
    """Yield both criteria of each step (predictions, real latents, labels), then remember the step."""
    for predicted, real, labels in batches:
        terms = memory.losses(0, predicted, real, labels, len(labels))
        memory.remember(lambda parts: parts, labels)
        yield terms["representativeness"].item(), terms["diversity"].item()


def test_class_criteria_match_the_published_code():
    """Values of its loop over the same three batches, memories of 3; a class without memory counts as 0."""
    z0, eps = batch()
    first = (eps, z0, [0, 1, 1, 0])
    rest = ((eps + 0.3 * z0, eps, [0, 1, 1, 2]), (0.5 * z0 - eps, z0 + eps, [0, 1, 1, 2]))
    values = list(steps(MinimaxMemory("class", size=3), first, *rest))
    assert values[0] == (0, 0)
    assert values[1] == pytest.approx((0.57717162, 0.63414460), rel=1e-5)
    assert values[2] == pytest.approx((1.85835886, -0.38916051), rel=1e-5)


def test_image_criteria_do_not_depend_on_the_parts_of_a_batch():
    z0, eps = batch()
    memory = MinimaxMemory("image")
    list(steps(memory, (eps, z0, [0, 1, 1, 0])))
    whole = memory.losses(0, z0, eps, [0, 1, 1, 0], 4)
    halves = [
        memory.losses(0, z0[rows], eps[rows], labels, 4)
        for rows, labels in ((slice(0, 2), [0, 1]), (slice(2, 4), [1, 0]))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(value, halves[0][name] + halves[1][name])
