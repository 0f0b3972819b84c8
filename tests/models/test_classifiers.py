"""Evaluation networks: sizes, initialisation, refusals."""

import pytest
import torch
from tiny_generator import seeded

from ims3_ray.errors import InputError
from ims3_ray.models.classifiers import NETWORKS, SMALLEST_IMAGE, AvgPool2x2, build


@pytest.mark.parametrize(
    ("name", "counts"),  # at 10, 100 and 1000 classes
    [
        ("resnetap10", (4_910_922, 4_957_092, 5_418_792)),
        ("resnet18", (11_181_642, 11_227_812, 11_689_512)),
        ("convnet6", (754_570, 858_340, 1_896_040)),
    ],
)
def test_parameter_counts_equal_the_published_ones(name, counts):
    for num_classes, count in zip((10, 100, 1000), counts, strict=True):
        assert sum(p.numel() for p in build(name, num_classes, 224, None).parameters()) == count


@pytest.mark.parametrize(
    ("name", "width", "count", "dim"),
    [
        ("convnet3", 32, 24_714, 512),  # 896 + 2 * 9248 + 3 * 64 + 512 * 10 + 10
        ("convnet4", None, 66_010, 192),
        ("resnet8", None, 78_042, 64),
        ("convnet3bn", None, 320_010, 2048),
        ("mlp", None, 417_802, 128),  # 2 * 3072 + 3072 * 128 + 128 * 128 + 2 * 3 * 128 + 128 * 10 + 10
    ],
)
def test_small_networks_have_their_parameters_and_features(name, width, count, dim):
    model = build(name, 10, 32, seeded(0), width=width)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.dim == dim
    assert model.features(torch.zeros(2, 3, 32, 32)).shape == (2, dim)


@pytest.mark.parametrize("name", sorted(SMALLEST_IMAGE))
def test_smallest_image_size_distinguishes_images_and_one_pixel_less_is_refused(name):
    size = SMALLEST_IMAGE[name]
    logits = build(name, 3, size, seeded(0), width=4)(torch.randn(2, 3, size, size, generator=seeded(1)))
    assert logits.shape == (2, 3)
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    with pytest.raises(InputError, match=f"{name} .* {size} px, not {size - 1}"):
        build(name, 3, size - 1, seeded(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_depend_only_on_the_generator(name):
    before = torch.get_rng_state()
    first, second, other = (build(name, 2, 64, seeded(seed), width=4) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_initial_spread_is_torchs_in_convnets_and_hes_in_resnets():
    convnet = build("convnet3", 10, 32, seeded(0))
    weight = convnet.body[4].weight  # 128 -> 128 channels, 3x3: uniform within 1/sqrt(1152)
    assert weight.abs().max() <= 1152**-0.5
    assert weight.std().item() == pytest.approx(1152**-0.5 / 3**0.5, rel=0.02)
    resnet = build("resnet18", 10, 64, seeded(0))
    weight = resnet.body[4].conv1.weight  # 64 -> 64 channels, 3x3
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "strides"), [("resnetap10", {1}), ("resnet18", {1, 2}), ("resnet8", {1, 2})]
)
def test_resnetap_strides_by_averaging_and_resnet_by_convolution(name, strides):
    modules = build(name, 2, 64, None).modules()
    assert {m.stride for m in modules if isinstance(m, torch.nn.Conv2d)} == {(s, s) for s in strides}


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (4, 7)])
def test_pooling_equals_avg_pool2d_forward_and_backward(size):
    x = torch.randn(2, 3, *size, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    ours, theirs = AvgPool2x2()(x), torch.nn.functional.avg_pool2d(x, 2)
    assert torch.allclose(ours, theirs)
    weight = torch.randn(theirs.shape, generator=seeded(1), dtype=torch.float64)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, theirs)]
    assert torch.allclose(*gradients)


@pytest.mark.parametrize("name", ["convnet4", "resnet8", "mlp"])
def test_logits_do_not_depend_on_the_batch(name):
    model, x = build(name, 3, 32, seeded(0), width=8), torch.randn(4, 3, 32, 32, generator=seeded(1))
    assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-5)
