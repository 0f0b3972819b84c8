"""timm networks: sizes, stems, weights, refusals."""

import pytest
import timm
import torch
from timm.layers import DropPath

from ims3_ray.errors import InputError
from ims3_ray.models.timm_networks import build_timm, stem_for


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _shape(network: str, num_classes: int, size: int) -> torch.nn.Module:
    with torch.device("meta"):  # no weights
        return build_timm(network, num_classes, size, None, stem=stem_for(network, size))


@pytest.mark.parametrize(
    ("name", "count", "small_count"),
    [  # as published, at 1000 classes of 224 px; with the stem for small images, at 10 of 32
        ("resnet18", 11_689_512, 11_173_962),
        ("resnet50", 25_557_032, 23_520_842),
        ("resnet101", 44_549_160, 42_512_970),
        ("mobilenetv2_100", 3_504_872, 2_236_682),
        ("efficientnet_b0", 5_288_548, 4_020_358),
        ("vit_tiny_patch16_224", 5_717_416, 5_362_762),
        ("vit_small_patch16_224", 22_050_664, 21_342_346),
        ("swin_tiny_patch4_window7_224", 28_288_354, 27_505_108),
        ("vgg11", 132_863_336, 9_225_610),
    ],
)
def test_parameter_counts_equal_the_published_ones(name, count, small_count):
    for num_classes, size, expected in ((1000, 224, count), (10, 32, small_count)):
        model = _shape(f"timm:{name}", num_classes, size)
        assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "last_map"),
    [
        ("resnet18", (512, 4, 4)),
        ("mobilenetv2_100", (1280, 2, 2)),
        ("efficientnet_b0", (1280, 2, 2)),
        ("vit_tiny_patch16_224", (65, 192)),
        ("swin_tiny_patch4_window7_224", (2, 2, 768)),
        ("vgg11", (512, 1, 1)),
    ],
)
def test_small_stem_keeps_a_map_of_images_of_32_pixels(name, last_map):
    model, x = _shape(f"timm:{name}", 10, 32), torch.zeros(2, 3, 32, 32, device="meta")
    assert stem_for(f"timm:{name}", 32) == "small1"
    assert stem_for(f"timm:{name}", 224) is None
    assert model.body.forward_features(x).shape == (2, *last_map)
    assert model.features(x).shape == (2, model.dim)


def test_network_equals_timms_own():
    model = build_timm("timm:test_resnet", 7, 160, _seeded(0)).eval()
    theirs = timm.create_model("test_resnet", num_classes=7).eval()
    head = {f"fc.{name}": value for name, value in model.fc.state_dict().items()}
    theirs.load_state_dict(model.body.state_dict() | head)
    x = torch.randn(2, 3, 160, 160, generator=_seeded(1))
    assert torch.equal(model(x), theirs(x))
    assert torch.equal(model(x), model.fc(model.features(x)))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_weights_depend_only_on_the_generator(name):
    before, stem = torch.get_rng_state(), stem_for(f"timm:{name}", 32)
    first, second, other = (
        build_timm(f"timm:{name}", 2, 32, _seeded(s), channels=1, stem=stem) for s in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    weights = dict(first.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in second.named_parameters())
    assert any(not torch.equal(weights[name], value) for name, value in other.named_parameters())
    assert first(torch.zeros(2, 1, 32, 32)).shape == (2, 2)


def test_dropout_is_disabled():
    model = _shape("timm:swin_tiny_patch4_window7_224", 10, 32).train()
    drops = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    drops += [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert len(drops) > 12
    assert not any(drops)


@pytest.mark.parametrize(
    ("network", "size", "problem"),
    [
        ("timm:resnet19", 32, "resnet19.*resnet18"),
        ("timm:test_resnet", 8, "timm:test_resnet does not take images of 8 px"),
        ("timm:vgg11", 16, "timm:vgg11 does not take images of 16 px"),
        ("timm:deit_tiny_patch16_224", 32, "does not take images of 32 px"),
        ("timm:deit_tiny_distilled_patch16_224", 224, "linear layer"),
    ],
)
def test_unsuitable_network_is_refused_in_one_line(network, size, problem):
    with pytest.raises(InputError, match=problem) as error:
        build_timm(network, 10, size, None, stem=stem_for(network, size))
    assert "\n" not in str(error.value)


def test_one_class_is_refused():
    with pytest.raises(InputError, match="num_classes: must be 2 or more, not 1"):
        build_timm("timm:test_resnet", 1, 32, None)
