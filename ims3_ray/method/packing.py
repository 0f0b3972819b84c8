"""Packed sets: f × f smaller images, the tiles, in the pixels of one stored image.

A fixed function cuts a stored image and enlarges its tiles, in training and in refinement. A packed set of K
images per class trains as K · f² images and takes the storage of K. Source: Kim et al. 2022, section 4.1
(IDC, "multi-formation").
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .interpolation import resize

INTERPOLATION = "bilinear"  # of `enlarge`; without aligned corners
Images = Float[Tensor, "n 3 s s"] | UInt8[Tensor, "n 3 s s"]


def pack(tiles: Images, factor: int) -> Images:
    """Return stored images (N / f², 3, f·t, f·t) of tiles (N, 3, t, t), row by row.

    Raises ValueError if N is no multiple of f².
    """
    count, channels, side, _ = tiles.shape
    if count % factor**2:
        raise ValueError(f"{count} tiles do not fill images of {factor} × {factor}")
    grid = tiles.reshape(-1, factor, factor, channels, side, side)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, factor * side, factor * side)


def cut(images: Images, factor: int) -> Images:
    """Return the tiles (N · f², 3, S / f, S / f) of stored images (N, 3, S, S), row by row: undoes `pack`.

    Raises ValueError if f does not divide S.
    """
    count, channels, height, width = images.shape
    if height % factor or width % factor:
        raise ValueError(f"{width}×{height} pixels can't be cut into {factor} × {factor} tiles")
    side = height // factor, width // factor
    grid = images.reshape(count, channels, factor, side[0], factor, side[1])
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, *side)


def enlarge(tiles: Images, size: int) -> Images:
    """Scale tiles (N, 3, t, t) to (N, 3, size, size), differentiably; uint8 stays uint8, rounded."""
    if tiles.shape[2:] == (size, size):
        return tiles
    values = tiles if tiles.is_floating_point() else tiles.float()
    scaled = resize(values, size)
    return scaled if tiles.is_floating_point() else scaled.round().clamp(0, 255).to(torch.uint8)


def unpack(images: Images, factor: int, size: int) -> Images:
    """Return the images (N · f², 3, size, size) that train in place of stored images (N, 3, S, S)."""
    return enlarge(cut(images, factor), size)
