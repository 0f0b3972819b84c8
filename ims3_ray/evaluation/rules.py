"""What a protocol consists of: all that an accuracy depends on besides the images and the seed."""

from typing import Literal, cast

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from ims3_ray.config.evaluation import NetworkName, NetworkSpec
from ims3_ray.errors import InputError
from ims3_ray.models.classifiers import Classifier, build
from ims3_ray.models.timm_networks import build_timm, is_timm

from .dsa import DiffKind, OneOfKind

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Epochs by images per class: up to this many images, this many epochs; beyond the last, EPOCHS_BEYOND.
EPOCHS_BY_IPC = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
EPOCHS_BEYOND = 300


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Augmentations(_Frozen):
    """What is done to a training image, in this order, before normalising; zero or None leaves it out."""

    shuffle: int = Field(default=0, ge=0)
    """Columns, then rows, of so many by so many patches in another order (Sun et al. 2024)."""
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
    """One way of turning a training set into an accuracy: by hard labels, or by a teacher's answers."""

    name: str
    version: int = Field(ge=1)
    split: Literal["test", "validation"]
    """Whose images are scored: validation images for choices, test images for the final number alone."""
    network: NetworkSpec
    width: int | None = None
    """Channels of the network's first block; None is the published width."""
    stem: str | None = None
    """Name and version of a timm network's first layers where they are not timm's own."""
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
    temperature: float | None = Field(default=None, gt=0)
    """Of the KL divergence from a teacher's answers on what the network sees; None: hard labels."""
    batch_size: int = Field(default=64, ge=1)
    batch_sizes: tuple[tuple[int, int], ...] = ()
    """Up to so many images a class, this batch in its place; all of them twice from 100 classes on."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """`adamw` decays no biases and no norms."""
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["steps", "cosine", "restart", "half_cosine"] = "steps"
    """`steps`: x 0.2 at two thirds and at five sixths of the epochs. `cosine`: to zero, after the warm-up.
    `restart`: of E + 1 epochs those after the first E // 2 + 2 at x 0.1, their momentum begun anew.
    `half_cosine`: by epochs, down to a half."""
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
        """Name, version and network, as they stand beside every number: `minimax-v2/resnetap10`.

        Of a network with a width or a stem of its own these, too: `dc-cifar10-v1/timm:resnet18-small1`.
        """
        width = "" if self.width is None else f"-w{self.width}"
        stem = "" if self.stem is None else f"-{self.stem}"
        return f"{self.name}-v{self.version}/{self.network}{width}{stem}"

    @property
    def is_soft(self) -> bool:
        """Whether a teacher's answers are learnt in place of labels."""
        return self.temperature is not None

    @property
    def plain(self) -> "Protocol":
        """The same without any augmentation, under a name that says so."""
        changes = {"name": f"{self.name}-plain", "augmentations": Augmentations(), "cutmix": 0.0}
        return self.model_copy(update=changes)

    def build(self, num_classes: int, generator: torch.Generator | None = None) -> Classifier:
        """The network, on the CPU, its weights drawn from `generator`; InputError as `classifiers.build`."""
        shape = num_classes, self.image_size, generator
        if is_timm(self.network):
            return build_timm(self.network, *shape, channels=self.channels, stem=self.stem)
        image = {"channels": self.channels, "padding": self.padding}
        return build(cast(NetworkName, self.network), *shape, width=self.width, **image)

    def budget(self, ipc: int, num_classes: int) -> Budget:
        """Training length and speed for a set of `ipc` images a class."""
        many = num_classes > 100 and self.steps is None and self.epochs is None
        by_size = None if self.steps else epochs_for(ipc, num_classes)
        batch_size = next((batch for limit, batch in self.batch_sizes if ipc <= limit), self.batch_size)
        twice = 2 if self.batch_sizes and num_classes >= 100 else 1
        return Budget(
            epochs=self.epochs or by_size,
            steps=self.steps,
            batch_size=max(128, batch_size) if many else batch_size * twice,
            learning_rate=0.1 if many else self.learning_rate,
            weight_decay=1e-4 if many else self.weight_decay,
        )


def epochs_for(ipc: int, num_classes: int) -> int:
    """Epochs by images per class (Kim et al. 2022); at 100 classes two thirds, floored to a hundred."""
    if ipc < 1:
        raise InputError(f"ipc: a set needs at least 1 image per class, not {ipc}")
    epochs = next((epochs for limit, epochs in EPOCHS_BY_IPC if ipc <= limit), EPOCHS_BEYOND)
    return epochs * 2 // 3 // 100 * 100 if num_classes == 100 else epochs
