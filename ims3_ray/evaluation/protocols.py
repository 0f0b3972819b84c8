"""Named, versioned evaluation protocols: everything besides images and seed that determines an accuracy.

Incompatible protocols share names such as "ImageWoof, IPC 10" in the literature, so a number counts only
together with its protocol's `label`. Changing a value here raises the protocol's version.
Sources: Gu et al., CVPR 2024 (`minimax`), the published script of IMS3 (`ims3`), the published code of Zhao
et al. 2021 and Zhao & Bilen 2021 (`dc-…`, `dsa-…`) and of Sun et al., CVPR 2024 (RDED: `soft`, `rded-32`).
`quick`, `smoke` and `soft-32` are this project's own.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from ims3_ray.config.evaluation import NO_PROTOCOL as NO_PROTOCOL
from ims3_ray.config.evaluation import VALIDATION, NetworkName, NetworkSpec
from ims3_ray.errors import InputError
from ims3_ray.models.classifiers import NETWORKS, Classifier, build
from ims3_ray.models.timm_networks import build_timm, is_timm, stem_for

from .dsa import DiffKind, OneOfKind
from .schedule import Budget, epochs_for

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Augmentations(_Frozen):
    """Augmentations of a training image, in this order; zero, None or () disables one."""

    shuffle: int = Field(default=0, ge=0)
    """Split into this many columns, then rows, and permute them (Sun et al. 2024)."""
    crop_scale: tuple[float, float] | None = None
    """Random resized crop: smallest and largest share of the area; aspect ratio from 3/4 to 4/3."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring left to right."""
    randaugment_ops: int = Field(default=0, ge=0)
    randaugment_magnitude: int = Field(default=0, ge=0, le=30)
    """Out of 30, as in torchvision."""
    jitter: float = Field(default=0.0, ge=0, lt=1)
    """Brightness, contrast and saturation, each scaled by a factor within 1 ± this."""
    lighting: float = Field(default=0.0, ge=0)
    """Deviation of the noise along ImageNet's principal colours (Krizhevsky et al. 2012)."""
    siamese: tuple[DiffKind, ...] = ()
    """After normalising: one kind per batch, parameters per image (Zhao & Bilen 2021)."""
    one_of: tuple[OneOfKind, ...] = ()
    """After normalising: one kind per image (Zhao et al. 2021, for MNIST)."""


class Protocol(_Frozen):
    """One way to turn a training set into an accuracy, by hard labels or a teacher's soft labels."""

    name: str
    version: int = Field(ge=1)
    split: Literal["test", "validation"]
    """Scored images: validation images for choices, test images for the final number only."""
    network: NetworkSpec
    width: int | None = None
    """Channels of the network's first block; None is the published width."""
    stem: str | None = None
    """Name and version of a timm network's replaced first layers; None keeps timm's own."""
    channels: Literal[1, 3] = 3
    """Channels of the network's input; 1 is the luma."""
    padding: int = Field(default=1, ge=0)
    """Padding of a ConvNet's first convolution: 3 turns 28 pixels into 32."""
    image_size: int = Field(ge=8)
    """Pixels per side; `data.transforms.resize_and_crop` brings every image to it."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    deviation: tuple[float, ...] = IMAGENET_DEVIATION
    augmentations: Augmentations
    cutmix: float = Field(ge=0, le=1)
    """Probability that a batch is mixed: Beta(1, 1), one box per batch, permuted partners."""
    steps: int | None = Field(default=None, ge=1)
    """Full batches from an endless stream of epochs. None trains by epochs, with short last batches."""
    epochs: int | None = Field(default=None, ge=1)
    """Ignored if `steps` is set; None depends on the set's size."""
    temperature: float | None = Field(default=None, gt=0)
    """Temperature of the KL divergence from the teacher's answers; None trains on hard labels."""
    batch_size: int = Field(default=64, ge=1)
    batch_sizes: tuple[tuple[int, int], ...] = ()
    """(maximum images per class, batch size), replacing `batch_size`; all doubled from 100 classes on."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """`adamw` applies no decay to biases and norms."""
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["steps", "cosine", "restart", "half_cosine"] = "steps"
    """`steps`: x 0.2 at two thirds and five sixths of the epochs. `cosine`: to zero, after the warm-up.
    `restart`: of E + 1 epochs, those after the first E // 2 + 2 at x 0.1 with a fresh momentum.
    `half_cosine`: per epoch, down to a half."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly to its full value."""
    evaluations: int = Field(default=100, ge=1)
    """Number of evenly spaced evaluations during training; the last one is at the end."""

    @model_validator(mode="after")
    def _warm_up_belongs_to_the_cosine(self) -> "Protocol":
        if self.warmup and self.schedule != "cosine":
            raise ValueError(f"warmup: {self.warmup} needs schedule=cosine, not {self.schedule}")
        return self

    @property
    def label(self) -> str:
        """Name, version and network, printed beside every number: `minimax-v2/resnetap10`.

        A non-default width or stem is appended: `dc-cifar10-v1/timm:resnet18-small1`.
        """
        width = "" if self.width is None else f"-w{self.width}"
        stem = "" if self.stem is None else f"-{self.stem}"
        return f"{self.name}-v{self.version}/{self.network}{width}{stem}"

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the network may have batch norms, whose statistics are those of the whole batch."""
        return is_timm(self.network) or self.network.endswith("bn")

    @property
    def is_soft(self) -> bool:
        """Whether the network learns a teacher's answers instead of labels."""
        return self.temperature is not None

    @property
    def plain(self) -> "Protocol":
        """The protocol without augmentation, named `NAME-plain`."""
        changes = {"name": f"{self.name}-plain", "augmentations": Augmentations(), "cutmix": 0.0}
        return self.model_copy(update=changes)

    def build(self, num_classes: int, generator: torch.Generator | None = None) -> Classifier:
        """The network on the CPU, weights from `generator`. Raises InputError like `classifiers.build`.

        Running statistics of soft protocols move twice per step: the published code passes each batch through
        the student twice, first only to report its accuracy (Sun et al. 2024).
        """
        shape = num_classes, self.image_size, generator
        if is_timm(self.network):
            network = build_timm(self.network, *shape, channels=self.channels, stem=self.stem)
        else:
            image = {"channels": self.channels, "padding": self.padding}
            network = build(cast(NetworkName, self.network), *shape, width=self.width, **image)
        for norm in network.modules() if self.is_soft else ():
            if isinstance(norm, nn.BatchNorm2d) and norm.momentum is not None:
                norm.momentum = 1 - (1 - norm.momentum) ** 2
        return network

    def budget(self, ipc: int, num_classes: int) -> Budget:
        """Training length and speed for a set of `ipc` images per class."""
        many = num_classes > 100 and self.steps is None and self.epochs is None
        by_size = None if self.steps else epochs_for(ipc, num_classes)
        batch_size = next((batch for limit, batch in self.batch_sizes if ipc <= limit), self.batch_size)
        factor = 2 if self.batch_sizes and num_classes >= 100 else 1
        return Budget(
            epochs=self.epochs or by_size,
            steps=self.steps,
            batch_size=max(128, batch_size) if many else batch_size * factor,
            learning_rate=0.1 if many else self.learning_rate,
            weight_decay=1e-4 if many else self.weight_decay,
        )


_MINIMAX = Protocol(
    name="minimax",
    version=2,
    split="test",
    network="resnetap10",
    image_size=224,
    augmentations=Augmentations(crop_scale=(0.5, 1.0), flip=0.5, jitter=0.4, lighting=0.1),
    cutmix=1.0,
    learning_rate=0.01,
)
_IMS3_VIEWS = _MINIMAX.augmentations.model_copy(update={"randaugment_ops": 1, "randaugment_magnitude": 6})
_IMS3 = _MINIMAX.model_copy(update={"name": "ims3", "augmentations": _IMS3_VIEWS, "learning_rate": 0.1})
_QUICK = Protocol(  # values were chosen on the digits' validation images only
    name="quick",
    version=2,
    split="test",
    network="convnet3",
    width=32,
    image_size=32,
    augmentations=Augmentations(crop_scale=(0.7, 1.0)),
    cutmix=0.0,
    steps=150,
    learning_rate=0.1,
    nesterov=True,
    schedule="cosine",
    warmup=0.1,
    evaluations=5,
)
_SMOKE = _QUICK.model_copy(  # shows within seconds that a pipeline runs; its accuracies are meaningless
    update={"name": "smoke", "width": 8, "image_size": 16, "steps": 6, "batch_size": 16, "evaluations": 2}
)
_GREY: dict[str, Any] = {"channels": 1, "padding": 3, "image_size": 28}
_SMALL: dict[str, dict[str, Any]] = {  # small images, normalised as in Zhao et al. 2021
    "mnist": {**_GREY, "mean": (0.1307,), "deviation": (0.3081,)},
    "fashion": {**_GREY, "mean": (0.2861,), "deviation": (0.3530,)},
    "cifar10": {"image_size": 32, "mean": (0.4914, 0.4822, 0.4465), "deviation": (0.2023, 0.1994, 0.2010)},
}
_SIAMESE: tuple[DiffKind, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")


def _zhao(method: Literal["dc", "dsa"], images: str) -> Protocol:
    """Evaluation of the published code: 300 epochs, 1000 with augmentation, and one more."""
    views = Augmentations()
    if method == "dsa":
        views = Augmentations(siamese=tuple(kind for kind in _SIAMESE if (images, kind) != ("mnist", "flip")))
    elif images == "mnist":
        views = Augmentations(one_of=("crop", "scale", "rotate"))
    return Protocol(
        name=f"{method}-{images}",
        version=1,
        split="test",
        network="convnet3",
        **_SMALL[images],
        augmentations=views,
        cutmix=0.0,
        epochs=301 if views == Augmentations() else 1001,
        batch_size=256,
        learning_rate=0.01,
        schedule="restart",
        evaluations=1,
    )


_SOFT = Protocol(
    name="soft",
    version=3,
    split="test",
    network="timm:resnet18",
    image_size=224,
    augmentations=Augmentations(shuffle=2, crop_scale=(0.5, 1.0), flip=0.5),
    cutmix=1.0,
    temperature=20.0,
    epochs=300,
    batch_sizes=((1, 10), (10, 50)),
    batch_size=100,
    optimiser="adamw",
    learning_rate=1e-3,
    weight_decay=0.01,
    schedule="half_cosine",
    evaluations=10,
)
# this project's own: `soft` at 32 pixels, with an instance-norm network
_SOFT_SMALL = _SOFT.model_copy(update={"name": "soft-32", "network": "convnet3", "image_size": 32})
_RDED_SMALL = _SOFT.model_copy(  # RDED's form for small images: no patches, a batch-norm network
    update={
        **{"name": "rded-32", "version": 2, "network": "convnet3bn", "image_size": 32},
        "augmentations": _SOFT.augmentations.model_copy(update={"shuffle": 0}),
    }
)
# Learning rates per kind of network: published ones for `soft`, chosen on the digits' validation images only
# for `quick`. Other networks use their protocol's rate.
_SOFT_RATES = {
    **{"timm:vgg": 5e-4, "timm:efficientnet": 2e-3, "timm:mobilenetv2": 2.5e-3},
    **{"timm:vit": 1e-4, "timm:swin": 1e-4},
}
RATES = {"quick": {"resnet8": 0.3, "mlp": 0.03}, **dict.fromkeys(("soft", "soft-32", "rded-32"), _SOFT_RATES)}

_ZHAO = [_zhao(method, images) for images in _SMALL for method in ("dc", "dsa")]
_TEST = (_QUICK, _MINIMAX, _IMS3, *_ZHAO, _SOFT, _SOFT_SMALL, _RDED_SMALL, _SMOKE)
_VALIDATION = [p.model_copy(update={"name": p.name + VALIDATION, "split": "validation"}) for p in _TEST]
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (*_TEST, *_VALIDATION)}


def get_protocol(name: str, network: str | None = None) -> Protocol:
    """The protocol `name`, with its own network or with `network` at that network's default width.

    Raises InputError, listing the choices, for an unknown protocol or network.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol: {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if network is None or network == protocol.network:
        return protocol
    if network not in NETWORKS and not is_timm(network):
        choices = f"{', '.join(NETWORKS)}, or timm:NAME"
        raise InputError(f"network: {network!r} is unknown; choose one of {choices}")
    rates = RATES.get(name.removesuffix(VALIDATION), {})
    rate = next((rate for kind, rate in rates.items() if network.startswith(kind)), protocol.learning_rate)
    stem = stem_for(network, protocol.image_size) if is_timm(network) else None
    update = {"network": network, "width": None, "stem": stem, "learning_rate": rate}
    return protocol.model_copy(update=update)


def get_protocols(name: str, networks: Sequence[str] | None = None) -> list[Protocol]:
    """The protocol `name` with each of `networks`; with its own network if None."""
    return [get_protocol(name, network) for network in networks or (None,)]


def validation_name(name: str) -> str:
    """The name of the same protocol scored on validation images."""
    return get_protocol(name).name.removesuffix(VALIDATION) + VALIDATION
