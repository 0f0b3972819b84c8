"""The sections of a recipe: one frozen typed section per stage, checked at construction.

A field's `description` is what `--help` and docs/configuration.md say of it (describe.py).
"""

import re
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)

from .base import Arithmetic, BatchSize, Compile, Count, Graphs, Section, Share, Weight
from .data import Licence, refuse_twice

NetworkName = Literal["convnet3", "convnet6", "resnetap10", "resnet18", "convnet4", "resnet8", "mlp"]
TIMM = re.compile(r"timm:[\w.]+")


def _as_network(spec: str) -> str:
    if spec not in get_args(NetworkName) and not TIMM.fullmatch(spec):
        raise ValueError(f"should be one of {', '.join(get_args(NetworkName))}, or timm:NAME")
    return spec


NetworkSpec = Annotated[str, AfterValidator(_as_network)]
"""A network of this project, or any of timm's, without its weights."""
ProtocolName = Literal[
    *("quick", "minimax", "ims3", "dc-mnist", "dsa-mnist", "dc-fashion", "dsa-fashion", "dc-cifar10"),
    *("dsa-cifar10", "soft", "soft-32", "smoke"),
]
VALIDATION = "-val"  # ends the name of a protocol's twin that scores on the validation images
NO_PROTOCOL = "none"  # of a run that scores nothing


def scored_split(protocol: str) -> Literal["test", "validation"]:
    """Returns the split whose images the protocol scores."""
    return "validation" if protocol.endswith(VALIDATION) else "test"


def _as_protocol(name: str) -> str:
    if name != NO_PROTOCOL and name.removesuffix(VALIDATION) not in get_args(ProtocolName):
        known = ", ".join(get_args(ProtocolName))
        raise ValueError(f"should be one of {known}, with {VALIDATION} for validation images, or none")
    return name


ProtocolSpec = Annotated[str, AfterValidator(_as_protocol)]
"""A protocol by its name, or none."""
Baseline = Literal["random", "herding", "k_center", "medoids", "k_medoids"]
Timestep = Annotated[int, Field(ge=0, le=999)]
Interval = Annotated[tuple[Timestep, ...], Field(min_length=2, max_length=2)]
MOST_VIEWS = 1000
SEEDS_A_RUN = 1000  # classifier seeds that belong to one seed of the run


class Model(Section):
    """The pretrained generator."""

    path: str = "package://digits"
    """Diffusers folder, original DiT .pt file, hub id (org/name, or org/name@revision) or package://digits."""
    vae: str | None = None
    """Folder or hub id (as above) of the VAE, beside an original DiT .pt file."""
    heads: Count | None = None
    """Attention heads, for a .pt file of no published size."""
    frequency_shift: Literal[0, 1] | None = None
    """Of the timestep's sinusoids: 0 as DiT, 1 as diffusers; null: as the checkpoint says."""
    precision: Arithmetic = Arithmetic()
    """Arithmetic of matrices; values that train are fp32 everywhere."""
    compile: Compile = Compile()
    """Compilation (torch.compile) of the transformer's blocks."""
    graphs: Graphs = Graphs()
    """CUDA graphs: the transformer's passes are recorded once and replayed, with less work for the host."""
    licence: Licence | None = None
    """Licence of the weights."""


class Encode(Section):
    """Latents of the training images."""

    images_per_class: Count | None = None
    """A seeded random subset of each class; null: all."""
    batch_size: BatchSize = BatchSize(cpu=50, cuda=64)
    """Images a forward pass."""


class Invert(Section):
    """DDIM inversion of the latents."""

    points: int = Field(default=10, ge=1, le=999)
    """S, grid points up to T − 1 at which inversions are kept."""
    substeps: Count = 1
    """DDIM steps from one grid point to the next: more follow the model's own trajectory more closely."""
    batch_size: BatchSize = BatchSize(cpu=50, cuda=128)
    """Latents a forward pass; with their mirror images where it is a GPU."""


class Embed(Section):
    """Features of real and drawn images."""

    extractor: str = "package://digits"
    """φ: timm:NAME (or NAME@revision), a folder, hub id, or package://digits."""
    batch_size: BatchSize = BatchSize(cpu=100, cuda=256)
    """Images a forward pass."""


class Sample(Section):
    """The pool of candidates that the tuned generator draws."""

    subgroups: Count = 5
    """G, subgroups of candidates a class."""
    pool_ipc: Count | None = None
    """Images a subgroup, of which the first ipc count; null draws ipc."""
    start: Literal["noise", "inversion"] = "noise"
    """inversion: from inverted real images at start_level, beyond the paper."""
    start_level: int = Field(default=400, ge=1, le=999)
    """Timestep of inverted starts; the nearest grid point of invert is taken."""
    start_from: Literal["medoids", "random", "sparse"] = "medoids"
    """Real images to start from: k-means medoids, any, or the sparsest."""
    start_images: Count | None = None
    """Such images a class, dealt out in turn; null: pool_ipc, the same for every subgroup."""
    start_noise: Share | None = None
    """Share of fresh noise in a start's variance; null: what inversions lack of 1."""
    sampler: Literal["ancestral", "ddim", "dpm"] = "ancestral"
    """DDPM's random steps, DDIM's fixed, or DPM-Solver++'s of second order, for few steps."""
    steps: int = Field(default=50, ge=2, le=1000)
    """Denoising steps an image."""
    spacing: Literal["linspace", "leading"] = "linspace"
    """Timesteps of the steps: DiT's published, or diffusers' default; dpm has its own, even in log SNR."""
    guidance_scale: float = Field(default=4.0, ge=0)
    """Of classifier-free guidance; 1 is none."""
    guidance_channels: Count = 3
    """Latent channels that are guided; DiT's published sampler guides 3 of 4."""
    guidance_interval: Interval | None = None
    """First and last timestep of classifier-free guidance; null: all."""
    guidance: Literal["none", "modes", "transport", "anchors"] = "none"
    """Towards k-means medoids of real latents: one an image, by a plan for the set, or these undrawn."""
    anchor_images: Count | None = None
    """Such medoids a class, dealt out in turn; null: pool_ipc, the same for every subgroup."""
    anchor_strength: Weight = 0.1
    """Of the pull towards them, in deviations of a step."""
    anchor_interval: Interval = (500, 999)
    """First and last timestep of the pull."""
    weights: Literal["ema", "last"] = "ema"
    """Tuned values to draw with: averaged, or the last."""
    batch_size: BatchSize = BatchSize(cpu=25, cuda=256)
    """Images a forward pass."""

    @field_validator("guidance_interval", "anchor_interval")
    @classmethod
    def _ascends(cls, interval: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if interval and interval[0] > interval[1]:
            raise ValueError(f"should go from the lower to the higher timestep, got {list(interval)}")
        return interval


class Select(Section):
    """S³: which candidates stand for their class."""

    alpha: Weight = 0.4
    """Weight of attraction to the own class's real images."""
    beta: Weight = 0.9
    """Weight of separation from the other classes."""
    epsilon: Weight = 0.0
    """Added to every distance before its logarithm."""
    normalization: Literal["per_class", "none"] = "per_class"
    """Whether separation is divided by the number of other classes."""
    subgroups: Count | None = None
    """Choose among a class's first so many, with 1 among nothing; null: all."""
    solver: Literal["auto", "rounds", "exact"] = "auto"
    """exact: branch and bound, up to 2,000 subgroups; auto: exact up to 200, then rounds."""
    restarts: int = Field(default=8, ge=0)
    """Further starts of the rounds, each from a random selection."""
    certify: Literal["auto", "none", "series", "trws"] = "auto"
    """Method of the lower bound: series is tight for many classes, trws for few; auto: the better one."""
    unit: Literal["subgroup", "image"] = "subgroup"
    """image: any ipc of a class's candidates, beyond the paper."""
    coverage: Weight = 0.0
    """Weight of how well the chosen images cover the real ones; needs unit=image."""
    coverage_by: Literal["balls", "distance"] = "balls"
    """Share of real images with a chosen one in their k-nearest-neighbour ball, or closeness."""
    coverage_neighbours: Count = 5
    """k of the balls."""
    exclude_copies: bool = False
    """Leave out candidates as near to a real image as the nearest percent of these to another."""
    real_images: Count | None = 200
    """K_i, real images a class that count, a seeded random subset; null: all."""
    memory: float = Field(default=2.5, gt=0)
    """GB an actor or the lower bound's task may take: more shards where actors need more."""

    @model_validator(mode="after")
    def _belong_together(self) -> "Select":
        of_images = self.unit == "image"
        rules = (
            (self.coverage and not of_images, f"coverage: {self.coverage} needs select.unit=image"),
            (self.exclude_copies and not of_images, "exclude_copies: needs select.unit=image"),
            (of_images and self.solver == "exact", "solver: exact needs select.unit=subgroup"),
        )
        for is_broken, rule in rules:
            if is_broken:
                raise ValueError(f"select.{rule}")
        return self


class Export(Section):
    """What the distilled set holds beside its images."""

    soft_labels: int = Field(default=0, ge=0, le=MOST_VIEWS)
    """Views of every image whose answers by the soft protocol's teacher are kept with it."""


class Evaluate(Section):
    """How an image set is scored."""

    protocol: ProtocolSpec = "quick"
    """Name of a protocol, with -val on validation images; none leaves evaluation out."""
    networks: Annotated[tuple[NetworkSpec, ...], Field(min_length=1)] | None = None
    """Classifiers: convnet3/4/6, resnet8, resnet18, resnetap10, mlp, timm:NAME; null: the protocol's own."""
    teacher: str | None = None
    """Of soft protocols: timm:NAME, a folder, hub id, package://digits; null: trained on the real images."""
    seeds: int = Field(default=3, ge=2, le=SEEDS_A_RUN)
    """Classifiers a set and network; 1 gives no interval."""
    baselines: tuple[Baseline, ...] = ("random",)
    """Ways to choose as many real images, scored beside the set."""
    draws: Annotated[int, Field(ge=2, le=SEEDS_A_RUN)] | None = None
    """Draws of random real images, whose accuracy spreads most, where these are more than seeds."""
    full: bool = True
    """Also train on the full real set."""
    unrefined: bool = True
    """If refine.steps is above 0, also train on the selected images before refinement."""
    membership_images: int = Field(default=1000, ge=0)
    """Training images that a membership attack tries, and at most as many scored ones; 0 leaves it out."""
    neighbours: Count = 5
    """k of the coverage balls."""
    pool_images: Count | None = None
    """Also measure the coverage of the pool's first so many candidates a class."""

    @field_validator("networks", "baselines")
    @classmethod
    def _refuse_twice(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return names and refuse_twice(names)
