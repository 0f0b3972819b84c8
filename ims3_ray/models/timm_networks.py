"""Evaluation networks from timm: any model by name, with freshly drawn weights.

At small image sizes the first layers of some kinds would leave nothing, so they get the field's usual stem
SMALL (He et al. 2016, section 4.2; Touvron et al. 2021 and Liu et al. 2021 at 1/4 … 1/8 of the patch):

| kind | stem `small1` |
|---|---|
| ResNet | 3x3 convolution at stride 1, no pooling |
| MobileNet, EfficientNet | first convolution at stride 1 |
| VGG | mean of the last map and one linear layer, no hidden layers |
| ViT | patches of 4x4 |
| Swin, Swin V2 | patches of 2x2, windows of 4x4 |

Batch norm keeps running means: train in `train()`, score in `eval()`. Dropout and stochastic depth are
disabled, because they would draw from the global generator.
"""

import difflib
import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ims3_ray.errors import InputError

from .classifiers import Classifier, check_num_classes

TIMM_SCHEME = "timm:"
SMALL = "small1"
MAX_SMALL_SIZE = 64  # pixels
# timm modules with an img_size argument
SIZED_MODULES = ("vision_transformer", "swin_transformer", "swin_transformer_v2")


def _small_resnet(model: Any, channels: int) -> None:
    model.conv1 = nn.Conv2d(channels, model.bn1.num_features, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _small_efficientnet(model: Any, _channels: int) -> None:
    model.conv_stem.stride = (1, 1)


def _small_vgg(model: Any, _channels: int) -> None:
    model.pre_logits = nn.Identity()
    model.head = type(model.head)(model.num_features, model.num_classes, pool_type="avg")
    nn.init.normal_(model.head.fc.weight, 0.0, 0.01)
    nn.init.zeros_(model.head.fc.bias)


# per timm module: arguments of the small stem, and changes after construction
SMALL_ARGUMENTS: dict[str, dict[str, int]] = {
    "vision_transformer": {"patch_size": 4},
    "swin_transformer": {"patch_size": 2, "window_size": 4},
    "swin_transformer_v2": {"patch_size": 2, "window_size": 4},
}
SMALL_CHANGES: dict[str, Callable[[Any, int], None]] = {
    "resnet": _small_resnet,
    "efficientnet": _small_efficientnet,
    "vgg": _small_vgg,
}


class TimmClassifier(Classifier):
    """A timm model: its pooled features, and its own linear layer `fc`."""

    def __init__(self, model: Any):
        super().__init__()
        self.fc = model.get_classifier()
        model.reset_classifier(0)
        self.body = model

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.body(x)


def is_timm(network: str) -> bool:
    return network.startswith(TIMM_SCHEME)


def check_timm_name(name: str, spec: str) -> None:
    """Raise InputError, suggesting similar names, unless timm has the model; `spec` is the user's input."""
    import timm  # slow import

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise InputError(f"{spec}: timm has no model {name!r}; similar names: {', '.join(near) or 'none'}")


def stem_for(network: str, image_size: int) -> str | None:
    """Return the stem for this image size; None is timm's own. Raises InputError for unknown names."""
    module = _module(network)
    has_small = module in SMALL_ARGUMENTS or module in SMALL_CHANGES
    return SMALL if image_size <= MAX_SMALL_SIZE and has_small else None


def build_timm(
    network: str,
    num_classes: int,
    image_size: int,
    generator: torch.Generator | None,
    *,
    channels: int = 3,
    stem: str | None = None,
) -> TimmClassifier:
    """Build `timm:NAME` on the CPU, weights drawn by timm from `generator` (None: to be loaded).

    Raises InputError for an unknown name, a model without a linear last layer, an unsuitable image size, and
    fewer than two classes.
    """
    check_num_classes(num_classes)
    _check_fits(network, image_size, channels, stem)
    seed = 0 if generator is None else int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):  # timm draws from the global generator
        torch.manual_seed(seed)
        return TimmClassifier(_assemble(network, num_classes, image_size, channels, stem))


def _module(network: str) -> str:
    """Return the timm module of a model: its family of networks."""
    import timm

    name = network.removeprefix(TIMM_SCHEME)
    check_timm_name(name, network)
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def _assemble(network: str, num_classes: int, image_size: int, channels: int, stem: str | None) -> Any:
    import timm
    from timm.layers import DropPath

    module = _module(network)
    arguments: dict[str, Any] = {"img_size": image_size} if module in SIZED_MODULES else {}
    arguments |= SMALL_ARGUMENTS.get(module, {}) if stem else {}
    if module == "resnet":  # timm starts the last norm of each block at 0; torchvision's, as published, at 1
        arguments["zero_init_last"] = False
    name = network.removeprefix(TIMM_SCHEME)
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **arguments)
    if stem and module in SMALL_CHANGES:
        SMALL_CHANGES[module](model, channels)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, DropPath):
            part.drop_prob = 0.0
    return model


@functools.cache
def _check_fits(network: str, image_size: int, channels: int, stem: str | None) -> None:
    """Raise InputError unless one training image of this size passes the network; uses no weights."""
    try:
        with torch.device("meta"):
            model = _assemble(network, 2, image_size, channels, stem)
            linear = model.get_classifier()
            model.train()(torch.zeros(1, channels, image_size, image_size))
    except InputError:
        raise
    except Exception as error:  # a model's code raises any type for unsuitable sizes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"network: {network} does not take images of {image_size} px ({reason}); choose another network "
            "or image size"
        ) from error
    if not isinstance(linear, nn.Linear):
        raise InputError(f"network: {network} does not end in one linear layer; choose another timm model")
