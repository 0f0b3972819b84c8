"""The augmentations of protocols `dc-…` and `dsa-…` on normalised images, as in both papers' published code.

Differentiable siamese augmentation (Zhao & Bilen 2021) draws one kind per batch; its parameters are drawn per
image to train classifiers, and once per batch to match images. Condensation on MNIST (Zhao et al. 2021) draws
one kind per image. All random numbers are drawn on the host.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

from ims3_ray.method.interpolation import interpolate, sample_at, triangle_weights
from ims3_ray.models.device import to_device

DiffKind = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
OneOfKind = Literal["crop", "scale", "rotate"]
Images = Float[Tensor, "n c h w"]
SCALE, DEGREES, CROP, CUTOUT = 1.2, 15.0, 0.125, 0.5  # factor, degrees, shares of a side
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
MNIST_CROP, MNIST_SCALE, MNIST_DEGREES = 4, 0.2, 45  # pixels, share, degrees


def uniform(low: float, high: float, *shape: int, like: Tensor, generator: Generator) -> Tensor:
    """Uniform numbers in [low, high), drawn on the host and sent to the device of `like`."""
    return to_device(torch.rand(shape, generator=generator), like.device) * (high - low) + low


def diff_augment(
    images: Images, kinds: Sequence[DiffKind], generator: Generator, *, shared: bool = False
) -> Images:
    """One of `kinds` per batch, with parameters per image, or one set of parameters if `shared`."""
    kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    return DIFFERENTIABLE[kind](images, 1 if shared else len(images), generator)


def _color(x: Images, draws: int, generator: Generator) -> Images:
    """Brightness, saturation, contrast."""
    brightness, saturation, contrast = uniform(0.0, 1.0, 3, draws, 1, 1, 1, like=x, generator=generator)
    x = x + (brightness - 0.5) * BRIGHTNESS
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * (saturation * SATURATION) + grey
    flat = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - flat) * (contrast + CONTRAST) + flat


def _crop(x: Images, draws: int, generator: Generator) -> Images:
    """Shift by up to an eighth of a side, padding with zeros."""
    limits = [int(side * CROP + 0.5) for side in x.shape[2:]]
    shift = [torch.randint(-s, s + 1, (draws,), generator=generator).expand(len(x)) for s in limits]
    padded = functional.pad(x, (limits[1], limits[1], limits[0], limits[0]))
    return _windows(padded, x, [by + s for by, s in zip(shift, limits, strict=True)])


def _windows(padded: Tensor, x: Images, first: Sequence[Tensor]) -> Images:
    """The window of x's size in each padded image that starts at its `first` row and column."""
    n, _, height, width = x.shape
    image = torch.arange(n, device=x.device)[:, None, None]
    rows = (to_device(first[0], x.device)[:, None] + torch.arange(height, device=x.device))[:, :, None]
    columns = (to_device(first[1], x.device)[:, None] + torch.arange(width, device=x.device))[:, None, :]
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)


def _cutout(x: Images, draws: int, generator: Generator) -> Images:
    """Set a box of half a side, centred at any pixel, to zero."""
    inside = []
    for dimension in (2, 3):
        side = x.shape[dimension]
        box = int(side * CUTOUT + 0.5)
        first = torch.randint(side + 1 - box % 2, (draws, 1), generator=generator) - box // 2
        place = torch.arange(side)
        inside.append((place >= first) & (place < first + box))
    box = to_device(inside[0][:, :, None] & inside[1][:, None, :], x.device)
    return x * ~box[:, None]


def _flip(x: Images, draws: int, generator: Generator) -> Images:
    return torch.where(uniform(0.0, 1.0, draws, 1, 1, 1, like=x, generator=generator) < 0.5, x.flip(3), x)


def _scale(x: Images, draws: int, generator: Generator) -> Images:
    """Scale each side by a separate factor in 1/1.2 … 1.2."""
    across, down = uniform(1 / SCALE, SCALE, 2, draws, 1, like=x, generator=generator)
    rows, columns = (
        triangle_weights(_centred(side, x) * factor + (side - 1) / 2, side)
        for side, factor in zip(x.shape[2:], (down, across), strict=True)
    )
    return interpolate(x, rows, columns)


def _rotate(x: Images, draws: int, generator: Generator) -> Images:
    angle = uniform(-1.0, 1.0, draws, like=x, generator=generator) * math.radians(DEGREES)
    sine, cosine = (f(angle)[:, None, None].expand(len(x), 1, 1) for f in (torch.sin, torch.cos))
    height, width = x.shape[2:]  # of a square, as the published code's relative coordinates are
    down, across = _centred(height, x)[:, None], _centred(width, x)
    rows = across * sine + down * cosine + (height - 1) / 2
    return sample_at(x, rows, across * cosine - down * sine + (width - 1) / 2)


def _centred(side: int, like: Tensor) -> Tensor:
    """Positions (side,) of pixels, from the image's centre."""
    return torch.arange(side, device=like.device, dtype=like.dtype) - (side - 1) / 2


DIFFERENTIABLE: dict[DiffKind, Callable[[Images, int, Generator], Images]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


def one_of_each(images: Images, kinds: Sequence[OneOfKind], generator: Generator) -> Images:
    """One of `kinds` per image: shifted by up to 4 pixels, scaled by up to a fifth, or rotated by up to 45°.

    The background is the batch's mean, or zero around a shrunk image. Rotation runs on the host with SciPy's
    cubic splines, as in the published code.
    """
    n, means = len(images), images.mean(dim=(0, 2, 3))  # (C,)
    choices = torch.randint(len(kinds), (n,), generator=generator).tolist()
    factors = (torch.rand((n, 2), generator=generator) * 2 - 1) * MNIST_SCALE + 1
    corners = torch.randint(2 * MNIST_CROP, (n, 2), generator=generator)
    degrees = torch.randint(-MNIST_DEGREES, MNIST_DEGREES, (n,), generator=generator).tolist()
    views: list[Tensor] = []
    for row, (image, kind) in enumerate(zip(images, (kinds[choice] for choice in choices), strict=True)):
        if kind == "crop":
            views.append(_crop_one(image, means, *corners[row].tolist()))
        elif kind == "scale":
            views.append(_scale_one(image, *factors[row].tolist()))
        else:
            views.append(_rotate_one(image, degrees[row], float(means.mean())))
    return torch.stack(views)


def _crop_one(image: Tensor, means: Tensor, top: int, left: int) -> Tensor:
    _, height, width = image.shape
    centred = image - means[:, None, None]
    padded = functional.pad(centred, (MNIST_CROP,) * 4)[:, top : top + height, left : left + width]
    return padded + means[:, None, None]


def _scale_one(image: Tensor, down: float, across: float) -> Tensor:
    _, height, width = image.shape
    size = int(down * height), int(across * height)
    resized = functional.interpolate(image[None], size)[0]
    side = max(*size, height, width)
    top, left = ((side - length) // 2 for length in size)
    canvas = image.new_zeros(len(image), side, side)
    canvas[:, top : top + size[0], left : left + size[1]] = resized
    return _centre_crop(canvas, height, width)


def _rotate_one(image: Tensor, degrees: int, outside: float) -> Tensor:
    from scipy import ndimage  # only for this protocol

    rotated = ndimage.rotate(image.cpu().numpy(), angle=degrees, axes=(-2, -1), cval=outside)
    return _centre_crop(torch.from_numpy(rotated).to(image), *image.shape[1:])


def _centre_crop(image: Tensor, height: int, width: int) -> Tensor:
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]
