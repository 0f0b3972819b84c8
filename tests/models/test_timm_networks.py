"""timm networks: sizes, stems, weights, refusals."""

import pytest
import timm
import torch
from timm.layers import DropPath
from tiny_generator import seeded

from ims3_ray.errors import InputError
from ims3_ray.models.timm_networks import build_timm, stem_for


def _build(network: str, num_classes: int, size: int, generator=None, **options) -> torch.nn.Module:
    return build_timm(network, num_classes, size, generator, stem=stem_for(network, size), **options)


def _shape(network: str, num_classes: int, size: int) -> torch.nn.Module:
    with torch.device("meta"):  # no weights
        return _build(network, num_classes, size)


@pytest.mark.parametrize(
    ("name", "count", "small_count", "last_map"),
    [  # as published, at 1000 classes of 224 px; with the stem for small images, at 10 of 32
        ("resnet18", 11_689_512, 11_173_962, (512, 4, 4)),
        ("resnet50", 25_557_032, 23_520_842, (2048, 4, 4)),
        ("mobilenetv2_100", 3_504_872, 2_236_682, (1280, 2, 2)),
        ("efficientnet_b0", 5_288_548, 4_020_358, (1280, 2, 2)),
        ("vit_tiny_patch16_224", 5_717_416, 5_362_762, (65, 192)),
        ("swin_tiny_patch4_window7_224", 28_288_354, 27_505_108, (2, 2, 768)),
        ("vgg11", 132_863_336, 9_225_610, (512, 1, 1)),
    ],
)
def test_parameter_counts_equal_the_published_ones_and_small_images_keep_a_map(
    name, count, small_count, last_map
):
    large, small = _shape(f"timm:{name}", 1000, 224), _shape(f"timm:{name}", 10, 32)
    assert sum(p.numel() for p in large.parameters()) == count
    assert sum(p.numel() for p in small.parameters()) == small_count
    assert (stem_for(f"timm:{name}", 32), stem_for(f"timm:{name}", 224)) == ("small1", None)
    x = torch.zeros(2, 3, 32, 32, device="meta")
    assert small.body.forward_features(x).shape == (2, *last_map)
    assert small.features(x).shape == (2, small.dim)


def test_network_equals_timms_own():
    model = build_timm("timm:test_resnet", 7, 160, seeded(0)).eval()
    theirs = timm.create_model("test_resnet", num_classes=7).eval()
    head = {f"fc.{name}": value for name, value in model.fc.state_dict().items()}
    theirs.load_state_dict(model.body.state_dict() | head)
    x = torch.randn(2, 3, 160, 160, generator=seeded(1))
    assert torch.equal(model(x), theirs(x))
    assert torch.equal(model(x), model.fc(model.features(x)))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_weights_depend_only_on_the_generator(name):
    before = torch.get_rng_state()
    first, second, other = (_build(f"timm:{name}", 2, 32, seeded(s), channels=1) for s in (3, 3, 4))
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
    ("name", "num_classes", "size", "word"),
    [
        ("resnet19", 10, 32, "resnet19.*resnet18"),
        ("test_resnet", 10, 8, "test_resnet .* 8 px"),
        ("vgg11", 10, 16, "vgg11 .* 16 px"),
        ("deit_tiny_patch16_224", 10, 32, "32 px"),
        ("deit_tiny_distilled_patch16_224", 10, 224, "linear layer"),
        ("test_resnet", 1, 32, "num_classes: .*, not 1"),
    ],
)
def test_unsuitable_network_is_refused_in_one_line(name, num_classes, size, word):
    with pytest.raises(InputError, match=word) as refused:
        _build(f"timm:{name}", num_classes, size)
    assert "\n" not in str(refused.value)
