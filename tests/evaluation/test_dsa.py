"""The protocols of Zhao et al. 2021 and Zhao & Bilen 2021, beside what their published code gives."""

import pytest
import torch
from tiny_generator import seeded
from torch.nn import functional

from ims3_ray.evaluation import dsa
from ims3_ray.evaluation.augment import augment, normalise
from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.evaluation.train import budget_for, generator_for, training_steps

N = 2000
# The image below in 4,000 views by the published code's functions: mean, mean deviation over the batch, means
# at (5, 20), (20, 5), (0, 0), deviation at (13, 27).
PUBLISHED = {
    "color": (0.1221, 0.2952, -0.0267, 0.2100, -0.5073, 0.2901),
    "crop": (0.1065, 0.1186, -0.0240, 0.2118, -0.0925, 0.1482),
    "cutout": (0.1040, 0.0825, -0.0167, 0.1688, -0.4599, 0.0906),
    "flip": (0.1268, 0.0750, -0.0214, 0.3662, -0.3481, 0.1500),
    "scale": (0.1149, 0.0533, -0.0266, 0.2182, -0.1137, 0.1220),
    "rotate": (0.1201, 0.0553, -0.0181, 0.2118, -0.0658, 0.0719),
}
PUBLISHED_MNIST = {
    "crop": (0.1199, 0.1103, -0.0388, 0.1969, 0.0084, 0.0870),
    "scale": (0.0951, 0.0740, -0.0480, 0.2050, -0.1327, 0.1227),
    "rotate": (0.1247, 0.1076, 0.0010, 0.1831, 0.1193, 0.2024),
}


@pytest.fixture
def images():
    """The same image again and again: a ramp downwards, brighter above its diagonal."""
    down, across = torch.arange(28.0)[:, None], torch.arange(28.0)[None]
    return (down / 28 - 0.5 + 0.3 * (across > down)).expand(N, 1, 28, 28)


def figures(views):
    x = views[:, 0]
    means = [x[:, row, column].mean() for row, column in ((5, 20), (20, 5), (0, 0))]
    return x.mean(), x.std(dim=0).mean(), *means, x[:, 13, 27].std()


@pytest.mark.parametrize("kind", PUBLISHED)
def test_views_are_distributed_as_the_published_ones(kind, images):
    views = dsa.DIFFERENTIABLE[kind](images, N, seeded())
    assert torch.tensor(figures(views)).numpy() == pytest.approx(PUBLISHED[kind], abs=0.025)


@pytest.mark.parametrize("kind", PUBLISHED_MNIST)
def test_views_of_mnist_are_distributed_as_the_published_ones(kind, images):
    views = dsa.one_of_each(images, (kind,), seeded())
    assert torch.tensor(figures(views)).numpy() == pytest.approx(PUBLISHED_MNIST[kind], abs=0.025)


def test_a_batch_sees_one_kind_and_each_of_its_images_another_view(images):
    generator = seeded()
    kinds = [dsa.diff_augment(images[:8], ("flip", "cutout"), generator) for _ in range(12)]
    flipped = [bool(((views == images[:8]) | (views == images[:8].flip(3))).all()) for views in kinds]
    assert 0 < sum(flipped) < len(kinds)
    assert all(len(torch.unique(views, dim=0)) > 1 for views in kinds)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_matched_images_share_one_view_for_any_number(kind, images):
    many, few = (dsa.diff_augment(images[:n], (kind,), seeded(3), shared=True) for n in (8, 2))
    assert torch.equal(many, many[:1].expand(8, -1, -1, -1))
    assert torch.equal(many[:2], few)


def test_a_gradient_passes_every_differentiable_view(images):
    for kind, view in dsa.DIFFERENTIABLE.items():
        x = images[:4].clone().requires_grad_()
        view(x, 4, seeded()).square().sum().backward()
        assert x.grad.abs().sum() > 0, kind


@pytest.mark.parametrize(("name", "count"), [("dsa-fashion", 317706), ("dc-cifar10", 320010)])
def test_the_network_has_as_many_parameters_as_the_published_one(name, count):
    assert sum(p.numel() for p in get_protocol(name).build(10).parameters()) == count


def test_grey_images_have_one_channel_normalised_as_published():
    pixels = torch.full((2, 3, 28, 28), 51, dtype=torch.uint8)
    rules = get_protocol("dc-fashion")
    seen = augment(pixels, rules, torch.Generator())
    assert seen.shape == (2, 1, 28, 28)
    assert seen == pytest.approx((0.2 - 0.2861) / 0.3530, abs=1e-6)
    assert torch.equal(seen, normalise(pixels / 255, rules))


def test_a_training_is_the_published_loop_with_its_second_optimiser():
    """Seven epochs, E = 6: at x 0.1 from the sixth on, with momentum from nothing."""
    rules = get_protocol("dc-fashion").model_copy(update={"epochs": 7, "batch_size": 4, "width": 4})
    images = torch.randint(256, (6, 3, 28, 28), generator=seeded()).byte()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    ours, theirs = (rules.build(3, seeded(1)) for _ in range(2))
    for _ in training_steps(ours, ours, (images, labels), rules, budget_for(rules, 6, 3), 5):
        pass
    order, lr = generator_for(5, "batches"), 0.01
    settings = {"momentum": 0.9, "weight_decay": 5e-4}
    optimiser = torch.optim.SGD(theirs.parameters(), lr=lr, **settings)
    for epoch in range(6 + 1):
        for rows in torch.randperm(6, generator=order).split(4):
            loss = functional.cross_entropy(theirs(normalise(images[rows] / 255, rules)), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if epoch == 6 // 2 + 1:
            lr *= 0.1
            optimiser = torch.optim.SGD(theirs.parameters(), lr=lr, **settings)
    for ours_, theirs_ in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_, theirs_)
