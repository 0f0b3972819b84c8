"""Interpolation with a deterministic backward: torch's values and gradients, by other operations."""

import pytest
import torch
from torch.nn import functional

from ims3_ray.method.interpolation import resize, sample_at


def images(size):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), requires_grad=True)


def assert_same(ours, theirs, x):
    weights = torch.rand(ours.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("size", "to"), [((8, 8), 16), ((10, 10), 7), ((13, 9), 5)])
def test_a_resize_is_the_antialiased_bilinear_one(size, to):
    x = images(size)
    assert_same(resize(x, to), functional.interpolate(x, (to, to), mode="bilinear", antialias=True), x)


def test_positions_between_and_outside_pixels_are_sampled_as_grid_sample_does():
    x = images((6, 8))
    rows, columns = (torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(k)) * 12 - 2 for k in (2, 3))
    grid = torch.stack([(2 * columns + 1) / 8 - 1, (2 * rows + 1) / 6 - 1], dim=-1)
    assert_same(sample_at(x, rows, columns), functional.grid_sample(x, grid, align_corners=False), x)
