"""Bilinear interpolation whose gradient has the same bits in every run on a GPU.

There, torch's grid_sample and antialiased interpolate add gradients by atomics, in no fixed order. Here,
scaling is two matrix products, and sampling elsewhere a gather, which has a deterministic backward.
"""

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "n c h w"]


def triangle_weights(
    positions: Float[Tensor, "*b out"], size: int, width: float = 1.0
) -> Float[Tensor, "*b out size"]:
    """Weights of `size` pixels, pixel i at i, for each position; `width` is half the triangle's base.

    At width 1, they are those of bilinear interpolation with zeros outside.
    """
    distances = (positions[..., None] - torch.arange(size, device=positions.device)).abs()
    return (1 - distances / width).clamp(min=0)


def interpolate(images: Images, rows: Float[Tensor, "_ H h"], columns: Float[Tensor, "_ W w"]) -> Images:
    """Images (N, C, H, W) by the weights of rows and columns, for each image (N) or for all (1)."""
    return rows[:, None] @ images @ columns[:, None].mT


def resize(images: Images, size: int) -> Images:
    """Images (N, C, size, size), as torch's bilinear interpolate with antialias gives them."""
    rows, columns = (_resizing(length, size, images)[None] for length in images.shape[2:])
    return interpolate(images, rows, columns)


def _resizing(length: int, size: int, like: Tensor) -> Float[Tensor, "size length"]:
    scale = length / size
    centres = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * scale - 0.5
    triangle = triangle_weights(centres, length, max(1.0, scale))
    return triangle / triangle.sum(dim=1, keepdim=True)


def sample_at(images: Images, rows: Float[Tensor, "n H W"], columns: Float[Tensor, "n H W"]) -> Images:
    """Values (N, C, H, W) at positions in pixels, pixel i at i; zeros outside."""
    height, width = images.shape[2:]
    flat, result = images.flatten(2), torch.zeros_like(images[..., :1, :1])
    for row, column in product((rows.floor(), rows.floor() + 1), (columns.floor(), columns.floor() + 1)):
        weight = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
        weight = weight * ((row >= 0) & (row < height) & (column >= 0) & (column < width))
        place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        index = place.long().flatten(1)[:, None].expand(-1, images.shape[1], -1)
        result = result + flat.gather(2, index).unflatten(2, rows.shape[1:]) * weight[:, None]
    return result
