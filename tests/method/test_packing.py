"""Packing: tiles in the pixels of one image, and back."""

import pytest
import torch
from torch.nn.functional import interpolate

from ims3_ray.method.packing import cut, enlarge, pack, unpack


def tiles(count, side=4):
    return torch.arange(count * 3 * side**2, dtype=torch.float32).reshape(count, 3, side, side)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_cutting_undoes_packing(factor):
    x = tiles(2 * factor**2)
    stored = pack(x, factor)
    assert stored.shape == (2, 3, 4 * factor, 4 * factor)
    assert torch.equal(cut(stored, factor), x)


def test_tiles_stand_row_by_row():
    (stored,) = pack(torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 2, 2), 2)
    assert stored[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_unpacked_images_are_bilinear_enlargements_and_differentiable():
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    unpacked = unpack(x, 2, 8)
    expected = interpolate(x[:, :, :4, 4:], size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(unpacked[1], expected[0])
    assert (torch.autograd.grad(unpacked.sum(), x)[0] > 0).all()


def test_bytes_are_rounded_once():
    x = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    enlarged = enlarge(x, 10)
    assert enlarged.dtype == torch.uint8
    assert torch.equal(enlarged, enlarge(x.float(), 10).round().to(torch.uint8))
    assert enlarge(x, 5) is x


def test_counts_and_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="5 tiles do not fill images of 2 × 2"):
        pack(tiles(5), 2)
    with pytest.raises(ValueError, match="4×4 pixels can't be cut into 3 × 3 tiles"):
        cut(tiles(1), 3)
