"""Networks of timm's: their sizes and stems, where their weights come from, what they refuse."""

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
    ("name", "count", "of_small"),
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
def test_parameter_counts_are_the_published_ones(name, count, of_small):
    for num_classes, size, expected in ((1000, 224, count), (10, 32, of_small)):
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
def test_a_small_stem_leaves_something_of_an_image_of_32_pixels(name, last_map):
    model, x = _shape(f"timm:{name}", 10, 32), torch.zeros(2, 3, 32, 32, device="meta")
    assert stem_for(f"timm:{name}", 32) == "small1"
    assert stem_for(f"timm:{name}", 224) is None
    assert model.body.forward_features(x).shape == (2, *last_map)
    assert model.features(x).shape == (2, model.dim)


def test_a_network_is_timms_own_but_for_where_it_is_cut():
    model = build_timm("timm:test_resnet", 7, 160, _seeded(0)).eval()
    theirs = timm.create_model("test_resnet", num_classes=7).eval()
    head = {f"fc.{name}": value for name, value in model.fc.state_dict().items()}
    theirs.load_state_dict(model.body.state_dict() | head)
    x = torch.randn(2, 3, 160, 160, generator=_seeded(1))
    assert torch.equal(model(x), theirs(x))
    assert torch.equal(model(x), model.fc(model.features(x)))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_weights_come_from_the_generator_alone(name):
    before, stem = torch.get_rng_state(), stem_for(f"timm:{name}", 32)
    first, second, other = (
        build_timm(f"timm:{name}", 2, 32, _seeded(s), channels=1, stem=stem) for s in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    weights = dict(first.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in second.named_parameters())
    assert any(not torch.equal(weights[name], value) for name, value in other.named_parameters())
    assert first(torch.zeros(2, 1, 32, 32)).shape == (2, 2)


def test_nothing_is_dropped_in_training():
    model = _shape("timm:swin_tiny_patch4_window7_224", 10, 32).train()
    drops = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    drops += [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert len(drops) > 12
    assert not any(drops)


@pytest.mark.parametrize(
    ("network", "size", "words"),
    [
        ("timm:resnet19", 32, "timm:resnet19: timm has no model 'resnet19'; near it: resnet18"),
        ("timm:test_resnet", 8, "timm:test_resnet is too deep for images of 8 px"),
        ("timm:vgg11", 16, "timm:vgg11 is too deep for images of 16 px"),
        ("timm:deit_tiny_patch16_224", 32, "or made for another size"),
        ("timm:deit_tiny_distilled_patch16_224", 224, "does not end in one linear layer"),
    ],
)
def test_what_can_not_be_built_is_refused_in_a_line(network, size, words):
    with pytest.raises(InputError, match=words) as refused:
        build_timm(network, 10, size, None, stem=stem_for(network, size))
    assert "\n" not in str(refused.value)


def test_one_class_is_too_few():
    with pytest.raises(InputError, match="at least 2 classes, not 1"):
        build_timm("timm:test_resnet", 1, 32, None)
