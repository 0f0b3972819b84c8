"""Evaluation networks: those of dataset distillation, and others to test whether a set generalises.

Batch norm is replaced by instance norm (`GroupNorm(C, C)`, affine): with ten images per class, running
statistics are unreliable. Only `convnet3bn` has it, RDED's network for small images. Each network has
`features(x)`, `forward(x)` and its `architecture`, and draws its weights from a given generator. Sources:
Zhao & Bilen 2021 (ConvNet), Kim et al. 2022 (ResNetAP: average pooling strides), He et al. 2016 (ResNet;
ResNet-8 has the 6n + 2 layers of section 4.2 with n = 1).
"""

import math
from itertools import pairwise
from typing import TypedDict, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ims3_ray.config.evaluation import NetworkName
from ims3_ray.errors import InputError

NETWORKS: tuple[str, ...] = get_args(NetworkName)
# published widths, except those of the MLP and of ConvNet-4
DEFAULT_WIDTH = {
    **{"convnet3": 128, "convnet3bn": 128, "convnet6": 128, "resnetap10": 64, "resnet18": 64},
    **{"convnet4": 48, "resnet8": 16, "mlp": 128},
}
# the last norm must see at least 2x2: over one position, an instance norm returns its bias
SMALLEST_IMAGE = {
    **{"convnet3": 8, "convnet3bn": 8, "convnet6": 64, "resnetap10": 64, "resnet18": 33},
    **{"convnet4": 16, "resnet8": 10, "mlp": 2},
}


class Architecture(TypedDict):
    """Arguments with which `build` makes the same network of RGB images again."""

    network: NetworkName
    num_classes: int
    image_size: int
    width: int


class Classifier(nn.Module):
    """A body that computes features, and a linear layer `fc`."""

    architecture: Architecture
    fc: nn.Linear

    @property
    def dim(self) -> int:
        """Number of features per image."""
        return self.fc.in_features

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the penultimate layer: the last map, flattened (ConvNet) or averaged (ResNet)."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        return self.fc(self.features(x))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels, channels, affine=True)


class _AvgPoolOnCpu(torch.autograd.Function):
    """2x2 average pooling of whole rows: half of `avg_pool2d`'s time on a CPU core."""

    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        rows = x[..., ::2, :] + x[..., 1::2, :]
        return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    def backward(_ctx: object, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]: by position
        (gradient,) = gradients
        *batch, height, width = gradient.shape
        rows = gradient.new_empty(*batch, height, 2 * width)
        rows[..., ::2] = rows[..., 1::2] = gradient * 0.25
        images = gradient.new_empty(*batch, 2 * height, 2 * width)
        images[..., ::2, :] = images[..., 1::2, :] = rows
        return images


class AvgPool2x2(nn.Module):
    """2x2 average pooling, stride 2; drops an odd last row or column."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        if x.is_cuda or x.shape[2] % 2 or x.shape[3] % 2:
            return F.avg_pool2d(x, 2)
        return cast(Tensor, _AvgPoolOnCpu.apply(x))


class ConvNet(Classifier):
    """Blocks of 3x3 convolution, norm, ReLU, 2x2 average pooling; features: the last map.

    The name gives their number, and with "bn" batch norm.
    """

    def __init__(
        self, name: NetworkName, width: int, num_classes: int, image_size: int, channels: int, padding: int
    ):
        super().__init__()
        depth, norm = int(name[len("convnet")]), nn.BatchNorm2d if name.endswith("bn") else _norm
        blocks: list[nn.Module] = []
        for block in range(depth):
            shape = (channels, width, 3, 1, padding) if block == 0 else (width, width, 3, 1, 1)
            blocks += [nn.Conv2d(*shape), norm(width), nn.ReLU(inplace=True), AvgPool2x2()]
        self.body = nn.Sequential(*blocks)
        side = (image_size + 2 * (padding - 1)) // 2**depth
        self.fc = nn.Linear(width * side**2, num_classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.body(x).flatten(1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Strides by convolution (ResNet) or average pooling (ResNetAP)."""

    def __init__(self, channels_in: int, channels: int, stride: int, average_pooling: bool):
        super().__init__()
        strided = 1 if average_pooling else stride
        pool = nn.AvgPool2d(stride) if average_pooling and stride > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(channels_in, channels, kernel_size=3, stride=strided, padding=1, bias=False)
        self.norm1 = _norm(channels)
        self.relu, self.pool = nn.ReLU(), pool
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = _norm(channels)
        self.shortcut = nn.Identity()
        if stride > 1 or channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, kernel_size=1, stride=strided, bias=False)
            self.shortcut = nn.Sequential(projection, pool, _norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.relu(self.norm1(self.conv1(x))))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(Classifier):
    """Stages of basic blocks at strides 1, 2, 2, …; its features are the average over the last map.

    ResNet-18: stem 7x7 stride 2, max pooling 3 stride 2. ResNetAP: stem 7x7 stride 1, average pooling 4.
    ResNet-8, for small images: stem 3x3, average pooling 2.
    """

    def __init__(self, name: NetworkName, width: int, num_classes: int, channels: int):
        super().__init__()
        average_pooling = name == "resnetap10"
        stages, blocks_per_stage = {"resnet8": (3, 1), "resnetap10": (4, 1), "resnet18": (4, 2)}[name]
        area, stride, pool = {
            "resnet8": (3, 1, AvgPool2x2()),
            "resnetap10": (7, 1, nn.AvgPool2d(4)),
            "resnet18": (7, 2, nn.MaxPool2d(3, stride=2, padding=1)),
        }[name]
        stem = nn.Conv2d(channels, width, area, stride, padding=area // 2, bias=False)
        layers: list[nn.Module] = [stem, _norm(width), nn.ReLU(inplace=True), pool]
        channels_in = width
        for stage in range(stages):
            channels = width * 2**stage
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels_in, channels, stride, average_pooling))
                channels_in = channels
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(channels_in, num_classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.body(x).mean(dim=(2, 3))


class MLP(Classifier):
    """Two hidden layers on the pixels, with layer norms; features: the second layer."""

    def __init__(self, width: int, num_classes: int, image_size: int, channels: int):
        super().__init__()
        sizes = (channels * image_size**2, width, width)
        layers: list[nn.Module] = [nn.Flatten(), nn.LayerNorm(sizes[0])]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(width, num_classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.body(x)


def build(
    name: NetworkName,
    num_classes: int,
    image_size: int,
    generator: torch.Generator | None,
    *,
    width: int | None = None,
    channels: int = 3,
    padding: int = 1,
) -> Classifier:
    """Build a network by name on the CPU, weights drawn from `generator` (None: unset, to be loaded).

    `width` is the number of channels of the first block (None: published), `channels` that of the images,
    `padding` that of a ConvNet's first convolution. Raises InputError for fewer than two classes, or images
    too small for the network's depth.
    """
    check_num_classes(num_classes)
    if image_size < SMALLEST_IMAGE[name]:
        fitting = [other for other in NETWORKS if image_size >= SMALLEST_IMAGE[other]]
        remedy = f"choose {' or '.join(fitting)}, or larger images" if fitting else "use larger images"
        raise InputError(
            f"network: {name} needs images of at least {SMALLEST_IMAGE[name]} px, not {image_size}; {remedy}"
        )
    width = DEFAULT_WIDTH[name] if width is None else width
    if width < 1:
        raise InputError(f"width: must be 1 or more, not {width}")
    with torch.device("meta"):  # no memory, no draws from the global generator
        model = _assemble(name, width, num_classes, image_size, channels, padding)
    model = model.to_empty(device="cpu")
    model.architecture = Architecture(
        network=name, num_classes=num_classes, image_size=image_size, width=width
    )
    if generator is not None:
        init_weights(model, generator)
    return model


def check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise InputError(f"num_classes: must be 2 or more, not {num_classes}")


def _assemble(
    name: NetworkName, width: int, num_classes: int, image_size: int, channels: int, padding: int
) -> Classifier:
    if name == "mlp":
        return MLP(width, num_classes, image_size, channels)
    if name.startswith("convnet"):
        return ConvNet(name, width, num_classes, image_size, channels, padding)
    return ResNet(name, width, num_classes, channels)


@torch.no_grad()
def init_weights(model: Classifier, generator: torch.Generator) -> None:
    """Draw all weights from `generator`, in the order of the modules.

    ResNet convolutions: normal, variance 2 / (kernel area x output channels) (He et al. 2015; Kim et al.
    2022). Other convolutions and linear layers: torch's default, uniform in ±1 / sqrt(fan-in).
    """
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
            module.weight.fill_(1.0)
            module.bias.zero_()
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        elif isinstance(module, nn.Conv2d) and isinstance(model, ResNet):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            module.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):  # weight, then bias
                parameter.uniform_(-bound, bound, generator=generator)
