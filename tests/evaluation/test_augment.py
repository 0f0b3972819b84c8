"""Batched augmentation against the plain torchvision path: same functions, same distributions, per image."""

import itertools
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from crossings import META, Sent
from tiny_generator import seeded
from torchvision import transforms
from torchvision.transforms import v2

from ims3_ray.evaluation.augment import (
    COLOUR_DEVIATIONS,
    COLOUR_DIRECTIONS,
    _randaugment_operations,
    adjust_colours,
    augment,
    colour_jitter,
    cutmix,
    flip,
    lighting,
    randaugment,
    resized_crop,
)
from ims3_ray.evaluation.protocols import get_protocol


def _assert_same_mean_and_spread(found, expected):
    """Assert that means of draws (N, ...) lie within 4 standard errors and deviations within a tenth."""
    error = (found.var(0) / len(found) + expected.var(0) / len(expected)).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() <= 4 * error + 1e-6).all()
    assert torch.allclose(found.std(0), expected.std(0), rtol=0.1, atol=1e-4)


def _drawn(count, draw):
    """Draws of torchvision, which takes its numbers from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [draw() for _ in range(count)]


def _ramps(n, height, width):
    """Images whose first two colours are the column and the row, so that a crop tells its own box."""
    image = torch.rand(3, height, width, generator=seeded(9))
    image[0], image[1] = torch.arange(width), torch.arange(height)[:, None]
    return image.expand(n, 3, height, width)


def _boxes(crops):
    """(top, left, height, width) of each crop of a ramp."""
    left, right, top, bottom = crops[:, 0, 0, 0], crops[:, 0, 0, -1], crops[:, 1, 0, 0], crops[:, 1, -1, 0]
    return torch.stack((top, left, bottom - top + 1, right - left + 1), dim=1).round().int()


def test_each_crop_is_what_torchvision_makes_of_the_same_box():
    images = _ramps(20, 16, 20)
    crops = resized_crop(images, (0.3, 1.0), seeded())
    boxes = _boxes(crops).tolist()
    assert len({tuple(box) for box in boxes}) > 10
    for image, crop, (top, left, height, width) in zip(images, crops, boxes, strict=True):
        expected = reference.resized_crop(image, top, left, height, width, [16, 20], antialias=False)
        assert torch.allclose(crop, expected, atol=1e-4)


def test_boxes_are_distributed_as_torchvisions():
    images = _ramps(3000, 32, 32)
    found = _boxes(resized_crop(images, (0.5, 1.0), seeded())).float()
    draw = transforms.RandomResizedCrop.get_params
    expected = torch.tensor(_drawn(3000, lambda: draw(images[0], [0.5, 1.0], [3 / 4, 4 / 3]))).float()
    _assert_same_mean_and_spread(found, expected)
    area = found[:, 2] * found[:, 3] / 32**2
    assert 0.45 < area.min() < area.max() <= 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_colours_are_adjusted_as_by_torchvision_in_any_order(order):
    # torchvision clips, the published code does not
    image = torch.rand(3, 4, 4, generator=seeded(3)) * 0.2 + 0.35
    factors = (1.3, 0.7, 1.4)
    adjust = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)
    expected = image
    for index in order:
        expected = adjust[index](expected, factors[index])
    found = adjust_colours(image[None], *(torch.full((1, 1, 1, 1), factor) for factor in factors))[0]
    assert torch.allclose(found, expected, atol=2e-4)  # torchvision's luma has one digit more


def test_colour_jitter_has_torchvisions_mean_and_spread():
    image = torch.rand(3, 2, 2, generator=seeded(3)) * 0.2 + 0.35
    path = transforms.ColorJitter(0.4, 0.4, 0.4)
    expected = torch.stack(_drawn(1000, lambda: path(image)))
    _assert_same_mean_and_spread(colour_jitter(image.expand(6000, 3, 2, 2), 0.4, seeded()), expected)


def test_jitter_and_lighting_draw_anew_for_every_image():
    images = torch.rand(1, 3, 4, 4, generator=seeded(4)).expand(6, 3, 4, 4)
    for made in (colour_jitter(images, 0.4, seeded()), lighting(images, 0.1, seeded())):
        assert len({tuple(image.flatten().tolist()) for image in made}) == 6


def test_lighting_adds_one_colour_with_the_published_covariance():
    added = lighting(torch.zeros(20_000, 3, 2, 2), 0.1, seeded())
    assert torch.equal(added, added[:, :, :1, :1].expand_as(added))
    directions, deviations = np.array(COLOUR_DIRECTIONS), 0.1 * np.array(COLOUR_DEVIATIONS)
    expected = directions @ np.diag(deviations**2) @ directions.T
    assert np.allclose(np.cov(added[:, :, 0, 0].T.numpy()), expected, atol=0.03 * expected.max())


def test_half_of_the_images_are_mirrored():
    images = torch.rand(2000, 3, 2, 4, generator=seeded(5))
    made = flip(images, 0.5, seeded())
    same, mirrored = ((made == other).flatten(1).all(dim=1) for other in (images, images.flip(-1)))
    assert (same ^ mirrored).all()
    assert 0.45 < mirrored.float().mean() < 0.55


def test_randaugment_makes_the_images_that_torchvisions_makes_as_often():
    image = torch.randint(20, 240, (3, 20, 20), dtype=torch.uint8, generator=seeded(6))
    path = v2.RandAugment(num_ops=1, magnitude=6)
    expected = torch.stack(_drawn(1200, lambda: path(image))).unique(dim=0).int()
    made = randaugment(image.expand(3000, 3, 20, 20).float() / 255, 6, seeded())
    found, counts = (made * 255).round().int().unique(dim=0, return_counts=True)
    apart = (found[:, None] - expected).abs().flatten(2).amax(dim=2)  # one grey level: magnitudes in float32
    assert len(found) == len(expected) == 23  # 9 operations with two signs, 5 without
    assert apart.amin(dim=1).max() <= 1
    assert apart.amin(dim=0).max() <= 1
    unchanged = (found == image.int()).flatten(1).all(dim=1)
    assert (counts[unchanged] / 3000).item() == pytest.approx(1 / 14, abs=0.02)


def test_cutmix_shares_out_labels_as_areas_with_the_published_boxes():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    generator, shares = seeded(), []
    for _ in range(1000):
        mixed, partners, own = cutmix(images, torch.arange(4), 1.0, generator)
        assert sorted(partners.tolist()) == [0, 1, 2, 3]
        for image, label, partner in zip(mixed, range(4), partners.tolist(), strict=True):
            assert set(image.unique().tolist()) <= {label, partner}
            if label != partner:
                assert (image == label).float().mean().item() == pytest.approx(own.item())
        shares.append(own)
    _assert_same_mean_and_spread(torch.stack(shares), _published_shares(20_000, 8))


def _published_shares(count, size):
    """The own share of the area per draw of a box of Yun et al. 2019, with numpy."""
    rng = np.random.default_rng(0)
    cut = (size * np.sqrt(1 - rng.beta(1, 1, count))).astype(int)
    centre = rng.integers(0, size, (2, count))
    wide, high = np.clip(centre + cut // 2, 0, size) - np.clip(centre - cut // 2, 0, size)
    return torch.from_numpy(1 - wide * high / size**2).float()


def test_cutmix_leaves_batches_alone_as_often_as_asked():
    images, labels, generator = torch.rand(2, 3, 8, 8, generator=seeded(7)), torch.arange(2), seeded()
    mixed, _, own = cutmix(images, labels, 0.0, generator)
    assert torch.equal(mixed, images)
    assert own == 1
    half, always = (
        np.mean([cutmix(images, labels, share, generator)[2].item() == 1 for _ in range(400)])
        for share in (0.5, 1.0)
    )
    assert half == pytest.approx(0.5 + 0.5 * always, abs=0.1)


@pytest.mark.parametrize("name", ["quick", "minimax", "ims3"])
def test_a_training_view_depends_on_its_generator_alone(name):
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=seeded(8))
    before = torch.get_rng_state()
    first, again, other = (augment(images, get_protocol(name), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["quick", "minimax", "ims3"])
def test_views_read_nothing_off_the_device_and_are_sent_their_draws_alone(name):
    """Once its tables are there, a view sends as often again, however many operations its images drew."""
    images, generator = torch.empty(64, 3, 16, 16, dtype=torch.uint8, device=META), seeded()

    def sent():
        with Sent() as counted:
            augment(images, get_protocol(name), generator)
        return counted.count

    sent()
    assert sent() == sent() <= 8


@pytest.mark.parametrize("magnitude", [0, 6, 30])
def test_operations_by_tables_are_torchvisions_to_the_bit(magnitude):
    images = torch.randint(0, 256, (5, 3, 11, 14), dtype=torch.uint8, generator=seeded(2))
    *_, height, width = images.shape
    ours, m = _randaugment_operations(magnitude, height, width, torch.device("cpu")), magnitude / 30
    angle = math.degrees(math.atan(0.3 * m))
    across, down = (int(150 / 331 * size * m) for size in (width, height))
    for sign in (-1.0, 1.0):
        moved = [
            ([0, 0], [sign * angle, 0.0]),
            ([0, 0], [0.0, sign * angle]),
            ([int(sign) * across, 0], [0.0, 0.0]),
            ([0, int(sign) * down], [0.0, 0.0]),
        ]
        for operation, (shift, shear) in enumerate(moved, start=1):
            theirs = reference.affine(images, 0.0, shift, scale=1.0, shear=shear, center=[0, 0])
            assert torch.equal(ours[operation](images, sign), theirs), operation
        assert torch.equal(ours[5](images, sign), reference.rotate(images, sign * 30 * m))
        assert torch.equal(ours[9](images, sign), reference.adjust_sharpness(images, 1 + sign * 0.9 * m))
