"""Named, versioned evaluation protocols: all that an accuracy depends on besides the images and the seed.

Three incompatible protocols share names such as "ImageWoof, IPC 10" in the literature, so a number is only
worth something together with its protocol's `label`. Any change of a value here raises the protocol's
version. Sources: Gu et al., CVPR 2024 (`minimax`), the published script of IMS3 (`ims3`), the published code
of Zhao et al. 2021 and Zhao & Bilen 2021 (`dc-…`, `dsa-…`); `quick` is this project's own.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)

from ims3_ray.errors import InputError
from ims3_ray.models.classifiers import NETWORKS, Classifier, NetworkName, build

from .siamese import DiffKind, OneOfKind

NO_PROTOCOL = "none"  # of a run that scores nothing
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Epochs by images per class: up to this many images, this many epochs; beyond the last, EPOCHS_BEYOND.
EPOCHS_BY_IPC = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
EPOCHS_BEYOND = 300


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that older versions did not have: no protocol that leaves them alone has another fingerprint."""

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        same = {name for name in self.LATER if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in dump(self).items() if name not in same}


class Augmentations(_Frozen):
    """What is done to a training image, in this order, before normalising; zero or None leaves it out."""

    LATER: ClassVar[frozenset[str]] = frozenset({"siamese", "one_of"})
    crop_scale: tuple[float, float] | None = None
    """Random resized crop: smallest and largest share of the area; aspect ratio from 3/4 to 4/3."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring left to right."""
    randaugment_ops: int = Field(default=0, ge=0)
    randaugment_magnitude: int = Field(default=0, ge=0, le=30)
    """Out of 30, as in torchvision."""
    jitter: float = Field(default=0.0, ge=0, lt=1)
    """Brightness, contrast and saturation, each by a factor within 1 ± this."""
    lighting: float = Field(default=0.0, ge=0)
    """Deviation of the noise along ImageNet's principal colours (Krizhevsky et al. 2012)."""
    siamese: tuple[DiffKind, ...] = ()
    """After normalising, one of these a batch, its parameters drawn for each image (Zhao & Bilen 2021)."""
    one_of: tuple[OneOfKind, ...] = ()
    """After normalising, one of these an image (Zhao et al. 2021, for MNIST)."""


class Budget(_Frozen):
    """How long and how fast a classifier trains on a set of a given size: a number of epochs, or of steps."""

    epochs: int | None
    steps: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float

    @property
    def units(self) -> int:
        """Epochs, or steps."""
        return self.epochs or self.steps or 0


class Protocol(_Frozen):
    """One way of turning a training set into an accuracy. SGD with momentum, cross-entropy, hard labels."""

    LATER: ClassVar[frozenset[str]] = frozenset({"channels", "padding", "epochs"})
    name: str
    version: int = Field(ge=1)
    split: Literal["test", "validation"]
    """Whose images are scored: validation images for choices, test images for the final number alone."""
    network: NetworkName
    width: int | None = None
    """Channels of the network's first block; None is the published width."""
    channels: Literal[1, 3] = 3
    """Of the images that the network sees: 1 is their luma."""
    padding: int = Field(default=1, ge=0)
    """Of a ConvNet's first convolution: 3 makes 32 pixels of 28."""
    image_size: int = Field(ge=8)
    """Pixels a side: all images, training and scored, come to it by `data.pixels.resize_and_crop`."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    deviation: tuple[float, ...] = IMAGENET_DEVIATION
    augmentations: Augmentations
    cutmix: float = Field(ge=0, le=1)
    """Probability that a batch is mixed; Beta(1, 1), one box a batch, partners by a permutation."""
    steps: int | None = Field(default=None, ge=1)
    """Full batches from an endless stream of epochs; None: epochs, the last batch of each short."""
    epochs: int | None = Field(default=None, ge=1)
    """Where steps are not given; None: by the set's size."""
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["steps", "cosine", "restart"] = "steps"
    """`steps`: x 0.2 at two thirds and at five sixths of the epochs. `cosine`: to zero, after the warm-up.
    `restart`: of E + 1 epochs those after the first E // 2 + 2 at x 0.1, their momentum begun anew."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly to its full value."""
    evaluations: int = Field(default=100, ge=1)
    """How many times the scored images are looked at, evenly spaced, the last one at the end."""

    @model_validator(mode="after")
    def _warm_up_belongs_to_the_cosine(self) -> "Protocol":
        if self.warmup and self.schedule != "cosine":
            raise ValueError(f"warmup: {self.warmup} needs schedule=cosine, not {self.schedule}")
        return self

    @property
    def label(self) -> str:
        """Name, version and network, as they stand beside every number: `minimax-v2/resnetap10`."""
        width = "" if self.width is None else f"-w{self.width}"
        return f"{self.name}-v{self.version}/{self.network}{width}"

    def build(self, num_classes: int, generator: torch.Generator | None = None) -> Classifier:
        """The network, on the CPU, its weights drawn from `generator`; InputError as `classifiers.build`."""
        image = {"channels": self.channels, "padding": self.padding}
        return build(self.network, num_classes, self.image_size, generator, width=self.width, **image)

    def budget(self, ipc: int, num_classes: int) -> Budget:
        """Training length and speed for a set of `ipc` images a class."""
        many = num_classes > 100 and self.steps is None and self.epochs is None
        by_size = None if self.steps else epochs_for(ipc, num_classes)
        return Budget(
            epochs=self.epochs or by_size,
            steps=self.steps,
            batch_size=max(128, self.batch_size) if many else self.batch_size,
            learning_rate=0.1 if many else self.learning_rate,
            weight_decay=1e-4 if many else self.weight_decay,
        )


def epochs_for(ipc: int, num_classes: int) -> int:
    """Epochs by images per class (Kim et al. 2022); at 100 classes two thirds, floored to a hundred."""
    if ipc < 1:
        raise InputError(f"ipc: a set needs at least 1 image per class, not {ipc}")
    epochs = next((epochs for limit, epochs in EPOCHS_BY_IPC if ipc <= limit), EPOCHS_BEYOND)
    return epochs * 2 // 3 // 100 * 100 if num_classes == 100 else epochs


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
_IMS3 = _MINIMAX.model_copy(
    update={
        "name": "ims3",
        "augmentations": _MINIMAX.augmentations.model_copy(
            update={"randaugment_ops": 1, "randaugment_magnitude": 6}
        ),
        "learning_rate": 0.1,
    }
)
_QUICK = Protocol(  # its values were chosen on the digits' validation images alone
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
# Learning rates of `quick` for networks that need another, chosen on the digits' validation images alone.
QUICK_RATES = {"resnet8": 0.3, "mlp": 0.03}
_SMOKE = _QUICK.model_copy(  # shows that a pipeline runs, in seconds; its accuracies say nothing
    update={"name": "smoke", "width": 8, "image_size": 16, "steps": 6, "batch_size": 16, "evaluations": 2}
)
_GREY: dict[str, Any] = {"channels": 1, "padding": 3, "image_size": 28}
_SMALL: dict[str, dict[str, Any]] = {  # sets of small images, as Zhao et al. 2021 normalise them
    "mnist": {**_GREY, "mean": (0.1307,), "deviation": (0.3081,)},
    "fashion": {**_GREY, "mean": (0.2861,), "deviation": (0.3530,)},
    "cifar10": {"image_size": 32, "mean": (0.4914, 0.4822, 0.4465), "deviation": (0.2023, 0.1994, 0.2010)},
}
_SIAMESE: tuple[DiffKind, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")


def _zhao(method: Literal["dc", "dsa"], images: str) -> Protocol:
    """Their code's evaluation: 300 epochs, 1000 with augmentation, and one more."""
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


# ends the name of a protocol's twin that scores on the validation images, for sweeps and every choice
VALIDATION = "-val"
_ZHAO = [_zhao(method, images) for images in _SMALL for method in ("dc", "dsa")]
_TESTED = (_QUICK, _MINIMAX, _IMS3, *_ZHAO, _SMOKE)
_VALIDATED = [p.model_copy(update={"name": p.name + VALIDATION, "split": "validation"}) for p in _TESTED]
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (*_TESTED, *_VALIDATED)}


def protocol(name: str, network: str | None = None) -> Protocol:
    """The protocol of this name, with another network if one is named (at its default width).

    Raises InputError for an unknown protocol or network, with the choices.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol: {name!r} is not known; choose one of {', '.join(PROTOCOLS)}")
    chosen = PROTOCOLS[name]
    if network is None or network == chosen.network:
        return chosen
    if network not in NETWORKS:
        raise InputError(f"network: {network!r} is not known; choose one of {', '.join(NETWORKS)}")
    rates = QUICK_RATES if name.removesuffix(VALIDATION) == _QUICK.name else {}
    learning_rate = rates.get(network, chosen.learning_rate)
    return chosen.model_copy(update={"network": network, "width": None, "learning_rate": learning_rate})


def on_validation(name: str) -> str:
    """The name of the protocol that scores on the validation images and is else this one."""
    return protocol(name).name.removesuffix(VALIDATION) + VALIDATION


def protocols(name: str, networks: Sequence[str] | None = None) -> list[Protocol]:
    """The protocol of this name with each of the networks, or with its own alone where None."""
    return [protocol(name, network) for network in networks or (None,)]
