"""Batched training augmentation: one call per batch on its device, with separate parameters per image.

Same order and distributions as the published scripts' PIL transforms (Kim et al. 2022, Gu et al. 2024). All
random numbers are drawn on the host from one generator and sent without synchronisation, so a seed gives the
same views on every device. Images are (N, 3, H, W) floats in [0, 1]; later values are not clipped, as in the
published code.
"""

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional

from ims3_ray.method.interpolation import interpolate, triangle_weights
from ims3_ray.models.device import to_device

from .dsa import diff_augment, one_of_each, uniform
from .protocols import Protocol

Operation = Callable[[Tensor, float], Tensor]  # (uint8 images, sign) → images

CROP_ATTEMPTS = 10  # as in torchvision: the first crop that fits inside the image, else the whole image
LUMA = (0.299, 0.587, 0.114)
# Principal components of ImageNet's RGB values in [0, 1]: deviations; directions as columns
COLOUR_DEVIATIONS = (0.2175, 0.0188, 0.0045)
COLOUR_DIRECTIONS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
MAGNITUDES = 30  # RandAugment's scale, as in torchvision
_SIDE, _CENTRE = 1 / 13, 5 / 13
# torchvision's sharpness kernel
SMOOTH = ((_SIDE, _SIDE, _SIDE), (_SIDE, _CENTRE, _SIDE), (_SIDE, _SIDE, _SIDE))


@functools.cache
def _constant(values: tuple[object, ...], device: torch.device) -> Tensor:
    """A cached tensor on a device."""
    with torch.inference_mode(False):  # a later caller may need gradients
        return torch.tensor(values, device=device)


def augment(
    images: UInt8[Tensor, "n 3 h w"], protocol: Protocol, generator: Generator
) -> Float[Tensor, "n c h w"]:
    """The protocol's normalised training view of a batch, without CutMix; C is `protocol.channels`."""
    return view(images.float() / 255, protocol, generator)


def view(
    images: Float[Tensor, "n 3 h w"], protocol: Protocol, generator: Generator, *, siamese: bool = False
) -> Float[Tensor, "n c h w"]:
    """`augment` for images in [0, 1]; differentiable unless the protocol uses RandAugment or `one_of`.

    `siamese` shares one draw of the siamese augmentation among all images, so that a generator of the same
    seed gives another batch the same view (Zhao & Bilen 2021, eq. 3).
    """
    steps, x = protocol.augmentations, images
    if steps.shuffle > 0:
        x = shuffle_patches(x, steps.shuffle, generator)
    if steps.crop_scale is not None:
        x = resized_crop(x, steps.crop_scale, generator)
    if steps.flip > 0:
        x = flip(x, steps.flip, generator)
    for _ in range(steps.randaugment_ops):
        x = randaugment(x, steps.randaugment_magnitude, generator)
    if steps.jitter > 0:
        x = colour_jitter(x, steps.jitter, generator)
    if steps.lighting > 0:
        x = lighting(x, steps.lighting, generator)
    x = normalise(x, protocol)
    if steps.siamese:
        x = diff_augment(x, steps.siamese, generator, shared=siamese)
    return one_of_each(x, steps.one_of, generator) if steps.one_of else x


def normalise(images: Float[Tensor, "n 3 h w"], protocol: Protocol) -> Float[Tensor, "n c h w"]:
    """Subtract the protocol's mean and divide by its deviation, per colour or on the luma."""
    mean, deviation = _constant((protocol.mean, protocol.deviation), images.device).view(2, -1, 1, 1)
    if protocol.channels == 1:
        images = (images * _constant(LUMA, images.device).view(3, 1, 1)).sum(dim=1, keepdim=True)
    return (images - mean) / deviation


def shuffle_patches(
    images: Float[Tensor, "n 3 h w"], factor: int, generator: Generator
) -> Float[Tensor, "n 3 h w"]:
    """Split each image into `factor` columns, then rows, and permute them (Sun et al. 2024, RDED)."""
    *_, height, width = images.shape
    columns, rows = (
        to_device(_shuffled(size, factor, len(images), generator), images.device) for size in (width, height)
    )
    images = images.gather(3, columns[:, None, None, :].expand_as(images))
    return images.gather(2, rows[:, None, :, None].expand_as(images))


def _shuffled(size: int, factor: int, count: int, generator: Generator) -> Int[Tensor, "count size"]:
    """Pixel indices along a side, its `factor` pieces in `count` random orders; the last piece is longest."""
    length = size // factor
    pieces = torch.arange(size).split([*[length] * (factor - 1), size - length * (factor - 1)])
    orders = torch.rand((count, factor), generator=generator).argsort(dim=1)
    return torch.stack([torch.cat([pieces[piece] for piece in order]) for order in orders.tolist()])


def resized_crop(
    images: Float[Tensor, "n 3 h w"], scale: tuple[float, float], generator: Generator
) -> Float[Tensor, "n 3 h w"]:
    """torchvision's RandomResizedCrop to the image's own size: bilinear, no pixel outside the box is read."""
    _, _, height, width = images.shape
    left, top, box_width, box_height = crop_boxes(images, scale, generator)
    rows, columns = _box_weights(height, top, box_height), _box_weights(width, left, box_width)
    return interpolate(images, rows, columns)


def crop_boxes(
    images: Float[Tensor, "n 3 h w"], scale: tuple[float, float], generator: Generator
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Left, top, width and height of one random box per image, in whole pixels.

    Area uniform in `scale` times the image's area, aspect ratio log-uniform in 3/4 … 4/3, position uniform.
    """
    n, _, height, width = images.shape
    area = uniform(*scale, n, CROP_ATTEMPTS, like=images, generator=generator) * (height * width)
    aspect = uniform(*LOG_RATIO, n, CROP_ATTEMPTS, like=images, generator=generator).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    any_fits = fits.any(dim=1)
    box_width = torch.where(any_fits, widths.gather(1, first).squeeze(1), float(width))
    box_height = torch.where(any_fits, heights.gather(1, first).squeeze(1), float(height))
    place = uniform(0.0, 1.0, n, 2, like=images, generator=generator)
    left = (place[:, 0] * (width - box_width + 1)).floor()
    top = (place[:, 1] * (height - box_height + 1)).floor()
    return left, top, box_width, box_height


def _box_weights(
    size: int, start: Float[Tensor, " n"], length: Float[Tensor, " n"]
) -> Float[Tensor, "n size size"]:
    """Weights of an image's `size` rows or columns for `size` positions inside [start, start + length)."""
    pixel = torch.arange(size, device=start.device) + 0.5
    inside = pixel * (length / size)[:, None] - 0.5
    inside = inside.clamp(min=0).minimum((length - 1)[:, None])
    return triangle_weights(inside + start[:, None], size)


def flip(
    images: Float[Tensor, "n 3 h w"], probability: float, generator: Generator
) -> Float[Tensor, "n 3 h w"]:
    """Mirror each image left to right with this probability."""
    mirrored = uniform(0.0, 1.0, len(images), 1, 1, 1, like=images, generator=generator) < probability
    return torch.where(mirrored, images.flip(-1), images)


def colour_jitter(
    images: Float[Tensor, "n 3 h w"], strength: float, generator: Generator
) -> Float[Tensor, "n 3 h w"]:
    """Scale each image's brightness, contrast and saturation by factors uniform in 1 ± strength."""
    factors = uniform(1 - strength, 1 + strength, 3, len(images), 1, 1, 1, like=images, generator=generator)
    return adjust_colours(images, *factors)


def adjust_colours(
    images: Float[Tensor, "n 3 h w"], brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Float[Tensor, "n 3 h w"]:
    """b (c s x + c (1-s) g + (1-c) mean(g)), with g the grey image and factors (N, 1, 1, 1).

    Without clipping the three operations commute, so this serves every order that the published code draws.
    """
    grey = (images * _constant(LUMA, images.device).view(3, 1, 1)).sum(dim=1, keepdim=True)
    flat = grey.mean(dim=(2, 3), keepdim=True)
    base = contrast * (1 - saturation) * grey + (1 - contrast) * flat
    return brightness * (contrast * saturation * images + base)


def lighting(
    images: Float[Tensor, "n 3 h w"], deviation: float, generator: Generator
) -> Float[Tensor, "n 3 h w"]:
    """Add one colour per image, normal along ImageNet's principal colours (Krizhevsky et al. 2012)."""
    alpha = to_device(torch.randn((len(images), 3), generator=generator), images.device) * deviation
    deviations, directions = (_constant(x, images.device) for x in (COLOUR_DEVIATIONS, COLOUR_DIRECTIONS))
    colour = (alpha * deviations) @ directions.T
    return images + colour[:, :, None, None]


def randaugment(
    images: Float[Tensor, "n 3 h w"], magnitude: int, generator: Generator
) -> Float[Tensor, "n 3 h w"]:
    """One of 14 operations per image, at a fixed magnitude and a random sign (Cubuk et al. 2020).

    Torchvision's list, ranges and 8-bit arithmetic. Images with the same operation and sign form one batch.
    """
    *_, height, width = images.shape
    x = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    operations = _randaugment_operations(magnitude, height, width, x.device)
    draws = torch.randint(2 * len(operations), (len(x),), generator=generator)
    order = draws.argsort(stable=True)
    parts = x[to_device(order, x.device)].split(draws.bincount(minlength=2 * len(operations)).tolist())
    views = [
        operations[draw // 2](part, 1.0 if draw % 2 else -1.0) for draw, part in enumerate(parts) if len(part)
    ]
    return torch.cat(views)[to_device(order.argsort(), x.device)].float() / 255


@functools.cache
def _randaugment_operations(magnitude: int, height: int, width: int, device: torch.device) -> list[Operation]:
    """The operations in torchvision's order; some ignore the sign."""
    import torchvision.transforms.v2.functional as ops  # takes a second

    m = magnitude / MAGNITUDES
    shear = math.degrees(math.atan(0.3 * m))
    across, down = int(150 / 331 * width * m), int(150 / 331 * height * m)

    def move(x: Tensor, across: int = 0, down: int = 0, shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        return ops.affine(x, angle=0.0, translate=[across, down], scale=1.0, shear=list(shear), center=[0, 0])

    moves: list[Operation] = [
        lambda x, sign: move(x, shear=(sign * shear, 0.0)),
        lambda x, sign: move(x, shear=(0.0, sign * shear)),
        lambda x, sign: move(x, across=int(sign) * across),
        lambda x, sign: move(x, down=int(sign) * down),
        lambda x, sign: ops.rotate(x, sign * 30 * m),
    ]
    return [
        lambda x, _: x,
        *(_as_lookup(move, height, width, device) for move in moves),
        lambda x, sign: ops.adjust_brightness(x, 1 + sign * 0.9 * m),
        lambda x, sign: ops.adjust_saturation(x, 1 + sign * 0.9 * m),
        lambda x, sign: ops.adjust_contrast(x, 1 + sign * 0.9 * m),
        lambda x, sign: _adjust_sharpness(x, 1 + sign * 0.9 * m),
        lambda x, _: ops.posterize(x, 8 - round(4 * m)),
        lambda x, _: ops.solarize(x, 255 * (1 - m)),
        lambda x, _: ops.autocontrast(x),
        lambda x, _: ops.equalize(x),
    ]


def _as_lookup(move: Operation, height: int, width: int, device: torch.device) -> Operation:
    """`move` as a table of source pixels (nearest neighbour)."""
    indices = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, 1, height, width)
    sources = {sign: move(indices, sign).flatten().long().to(device) for sign in (-1.0, 1.0)}  # 0 is outside

    def look_up(x: Tensor, sign: float) -> Tensor:
        return functional.pad(x.flatten(2), (1, 0)).index_select(2, sources[sign]).view_as(x)

    return look_up


def _adjust_sharpness(x: UInt8[Tensor, "n 3 h w"], factor: float) -> UInt8[Tensor, "n 3 h w"]:
    """Torchvision's operation without its new kernel per call, which would synchronise with the device."""
    if min(x.shape[2:]) <= 2:
        return x
    kernel = _constant(SMOOTH, x.device).expand(3, 1, 3, 3)
    sharpened = x.float()
    inner = sharpened[..., 1:-1, 1:-1]
    smooth = functional.conv2d(sharpened, kernel, groups=3).round()
    inner.add_(smooth - inner, alpha=1 - factor)
    return sharpened.clamp(0, 255).to(torch.uint8)


def cutmix(
    images: Float[Tensor, "n 3 h w"], labels: Tensor, probability: float, generator: Generator
) -> tuple[Float[Tensor, "n 3 h w"], Tensor, Float[Tensor, ""]]:
    """Mixed images, partners' labels, and each image's own share of the area (Yun et al. 2019).

    As published: one box per batch, λ from Beta(1, 1), uniform centre, clipped at the edges; partners by a
    permutation of the batch. With probability 1 - `probability` nothing is mixed and the share is 1.
    """
    n, _, height, width = images.shape
    lam, mixes, centre_x, centre_y = uniform(0.0, 1.0, 4, like=images, generator=generator)
    partners = to_device(torch.randperm(n, generator=generator), images.device)
    cut = (1 - lam).sqrt() * (mixes < probability)
    inside_x = _cut_span(width, cut, centre_x)
    inside_y = _cut_span(height, cut, centre_y)
    box = inside_y[:, None] & inside_x
    own_share = 1 - box.float().mean()
    return torch.where(box, images[partners], images), labels[partners], own_share


def _cut_span(size: int, cut: Tensor, centre: Tensor) -> Tensor:
    """Mask of the `size` pixels within half of floor(size x cut) of the centre pixel."""
    half = torch.div((size * cut).floor(), 2, rounding_mode="floor")
    middle = (centre * size).floor()
    pixel = torch.arange(size, device=cut.device)
    return (pixel >= middle - half) & (pixel < middle + half)
