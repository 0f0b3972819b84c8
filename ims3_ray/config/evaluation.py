"""The sections of scoring and refinement, and the names of networks, protocols and baselines."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, field_validator

from .base import BatchSize, Count, Section, check_unique

NetworkName = Literal[
    "convnet3", "convnet6", "resnetap10", "resnet18", "convnet4", "resnet8", "mlp", "convnet3bn"
]
ProtocolName = Literal[
    *("quick", "minimax", "ims3", "dc-mnist", "dsa-mnist", "dc-fashion", "dsa-fashion", "dc-cifar10"),
    *("dsa-cifar10", "soft", "soft-32", "rded-32", "smoke"),
]
Baseline = Literal["random", "herding", "k_center", "medoids", "k_medoids"]
TIMM = re.compile(r"timm:[\w.]+")
VALIDATION = "-val"  # suffix of a protocol that scores on validation images
NO_PROTOCOL = "none"
MAX_SOFT_VIEWS = 1000
SEEDS_PER_RUN = 1000  # classifier seeds that belong to one seed of the run


def _check_network(spec: str) -> str:
    if spec not in get_args(NetworkName) and not TIMM.fullmatch(spec):
        raise ValueError(f"should be one of {', '.join(get_args(NetworkName))}, or timm:NAME")
    return spec


def _check_protocol(name: str) -> str:
    if name != NO_PROTOCOL and name.removesuffix(VALIDATION) not in get_args(ProtocolName):
        choices = ", ".join(get_args(ProtocolName))
        raise ValueError(f"should be one of {choices}, with {VALIDATION} for validation images, or none")
    return name


NetworkSpec = Annotated[str, AfterValidator(_check_network)]
"""A network of this project, or timm:NAME, without pretrained weights."""
ProtocolSpec = Annotated[str, AfterValidator(_check_protocol)]
"""A protocol's name, or none."""
UNIQUE = AfterValidator(check_unique)


def scored_split(protocol: str) -> Literal["test", "validation"]:
    """Returns the split whose images the protocol scores."""
    return "validation" if protocol.endswith(VALIDATION) else "test"


class Packing(Section):
    """Packed sets: several smaller images in the pixels of one (Kim et al. 2022)."""

    factor: int = Field(default=1, ge=1, le=3)
    """f: a stored image holds f × f smaller ones, which training enlarges. 1: not packed."""


class Probe(Section):
    """Probes: networks trained on the real images, by which refinement measures."""

    networks: Annotated[tuple[NetworkName, ...], Field(min_length=1), UNIQUE] | None = None
    """Network architectures. null: those of the protocol."""
    width: Count | None = None
    """Channels of the first block. null: as the protocol, or as published."""
    count: int = Field(default=4, ge=0, le=SEEDS_PER_RUN)
    """Networks per architecture, each from its own seed. 0: a new untrained one per step of refinement."""
    checkpoint_steps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 5, 10, 20)
    """Training steps at which a checkpoint of each network is kept. 0: untrained."""
    protocol: ProtocolSpec | None = None
    """Protocol that sets image size, augmentation and training. null: evaluate.protocol."""

    @field_validator("checkpoint_steps")
    @classmethod
    def _check_order(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"checkpoint_steps: {list(steps)} must ascend without repetition")
        return steps


class Refine(Section):
    """Refinement: gradient steps that make probes learn from selected images as from real ones."""

    steps: int = Field(default=0, ge=0)
    """Gradient steps per class. 0: no refinement, as in the paper."""
    objective: Literal["gradients", "filters", "gradients_l1", "embeddings"] = "gradients"
    """Matched: directions of gradients per tensor or filter, gradients, or means of embeddings."""
    space: Literal["latent", "pixel"] = "latent"
    """Optimised variables: latents of the generator's VAE, or pixels at the classifiers' size."""
    start: Literal["selection", "medoids"] = "selection"
    """Initial images: the selected ones, or k-means medoids of the real ones."""
    lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Learning rate of Adam, for latents of about unit variance or pixels of 0 … 1."""
    views: Count = 2
    """Augmented views per image and step. Siamese augmentation takes one, shared with real images."""
    real_images: Count | None = None
    """Real images per class that the targets are computed from, a seeded random subset. null: all."""
    real_batch: Count | None = None
    """Real images per class drawn anew in every step. null: one target per probe, of real_images."""
    batch_size: BatchSize = BatchSize(cpu=64, cuda=16)
    """Images decoded at once. Larger classes are decoded in parts, with less memory and 50 % more time."""


class Export(Section):
    """Contents of the distilled set beside its images."""

    soft_labels: int = Field(default=0, ge=0, le=MAX_SOFT_VIEWS)
    """Augmented views per image whose soft labels are stored, by the teacher of the soft protocol."""


class Evaluate(Section):
    """Scoring of image sets."""

    protocol: ProtocolSpec = "quick"
    """Protocol. The suffix -val scores on validation images; none: no evaluation."""
    networks: Annotated[tuple[NetworkSpec, ...], Field(min_length=1), UNIQUE] | None = None
    """Classifiers: convnet3/3bn/4/6, resnet8/18, resnetap10, mlp or timm:NAME. null: the protocol's."""
    teacher: str | None = None
    """Teacher of soft protocols: timm:NAME, folder, hub id or package://digits. null: trained here."""
    seeds: int = Field(default=3, ge=1, le=SEEDS_PER_RUN)
    """Classifiers per set and network. Intervals need at least 2."""
    baselines: Annotated[tuple[Baseline, ...], UNIQUE] = ("random",)
    """Selections of real images, of the same number, scored beside the set."""
    random_subsets: Annotated[int, Field(ge=2, le=SEEDS_PER_RUN)] | None = None
    """Random subsets of real images to score, if more than seeds: their accuracy varies most. null: seeds."""
    full: bool = True
    """Also train on all real images."""
    unrefined: bool = True
    """If refine.steps is above 0, also train on the selected images before refinement."""
    neighbours: Count = 5
    """k of the k-NN balls in coverage metrics."""
    pool_images: Count | None = None
    """Also compute coverage of the first N candidates per class. null: not computed."""
