"""The sections of a recipe: one frozen typed section per stage, checked at construction.

A field's `description` is what `--help` and docs/configuration.md say of it (describe.py).
"""

from typing import Annotated, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from .base import Arithmetic, BatchSize, Compile, Count, Section, Share, Weight
from .data import Licence, refuse_twice

NetworkName = Literal["convnet3", "convnet6", "resnetap10", "resnet18"]
Baseline = Literal["random", "herding", "k_center", "medoids", "k_medoids"]
SEEDS_A_RUN = 1000  # classifier seeds that belong to one seed of the run


def _rows(cpu: int, cuda: int, what: str = "images a forward pass") -> BatchSize:
    return Field(default=BatchSize(cpu=cpu, cuda=cuda), description=what)


class Model(Section):
    """The pretrained generator."""

    path: str = Field(
        default="package://digits",
        description="diffusers folder, original DiT .pt file, hub id or package://digits",
    )
    vae: str | None = Field(
        default=None, description="folder or hub id of the VAE, beside an original DiT .pt file"
    )
    heads: Count | None = Field(
        default=None, description="attention heads, for a .pt file of no published size"
    )
    frequency_shift: Literal[0, 1] | None = Field(
        default=None,
        description="of the timestep's sinusoids: 0 as DiT, 1 as diffusers; null: by the checkpoint's kind",
    )
    precision: Arithmetic = Field(
        default=Arithmetic(), description="arithmetic of matrices; values that train are fp32 everywhere"
    )
    compile: Compile = Field(default=Compile(), description="torch.compile of the transformer's blocks")
    licence: Licence | None = Field(default=None, description="licence of the weights")


class Encode(Section):
    """Latents of the training images."""

    images_per_class: Count | None = Field(
        default=None, description="a seeded random subset of each class; null: all"
    )
    batch_size: BatchSize = _rows(50, 64)


class Invert(Section):
    """DDIM inversion of the latents."""

    points: int = Field(
        default=10, ge=1, le=999, description="S, grid points up to T − 1 at which inversions are kept"
    )
    batch_size: BatchSize = _rows(50, 128, "latents a forward pass, with their mirror images on a GPU")


class Minimax(Section):
    """Minimax Diffusion's criteria; weights and memory as it publishes them, once `im.minimax` is on."""

    representativeness: Weight = Field(
        default=0.002, description="weight of closeness to the memory of real latents"
    )
    diversity: Weight = Field(
        default=0.008, description="weight of distance to the memory of generated latents"
    )
    memory: Count = Field(default=64, description="latents that each memory holds")


class InversionMatching(Section):
    """What fine-tuning matches beside the diffusion loss."""

    weight: Weight = Field(default=0.002, description="λ_IM of the paper; 0 leaves matching out")
    grad_ratio: Weight | None = Field(
        default=None,
        description="λ_IM as the ratio of gradient norms, matching to diffusion; replaces weight",
    )
    target: Literal["trajectory", "one_step"] = Field(
        default="trajectory", description="what is matched; one_step reproduces the published code"
    )
    metric: Literal["cosine", "l1", "l2"] = Field(default="cosine", description="distance to the target")
    minimax: Minimax | None = Field(
        default=None, description="Minimax Diffusion's criteria: true, or its fields"
    )

    @field_validator("minimax", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        return {} if value is True else None if value is False else value


class Finetune(Section):
    """Training of the generator's difffit values."""

    epochs: int = Field(default=8, ge=0, description="passes over the latents; 0 keeps the pretrained model")
    batch_size: Count = Field(default=8, description="latents a step, a multiple of micro_batches")
    micro_batches: Count = Field(
        default=2, description="parts of a batch whose gradients are summed in order: worker counts divide it"
    )
    lr: float = Field(default=1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: Weight = Field(default=0.0, description="of AdamW")
    label_dropout: Share = Field(
        default=0.1, description="share of labels replaced by no class, for guidance"
    )
    ema_decay: float = Field(
        default=0.9999, ge=0, lt=1, description="of the moving average of the weights, a step"
    )
    log_every: Count = Field(default=50, description="steps between logged losses")
    checkpoint_every: Count = Field(
        default=500, description="steps between checkpoints, from which a killed run goes on"
    )

    @model_validator(mode="after")
    def _parts_fill_the_batch(self) -> "Finetune":
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"finetune.batch_size: {self.batch_size} is no multiple of micro_batches {self.micro_batches}"
            )
        return self


class Embed(Section):
    """Features of real and drawn images."""

    extractor: str = Field(
        default="package://digits", description="φ: timm:NAME, a folder, or package://digits"
    )
    batch_size: BatchSize = _rows(100, 256)


class Sample(Section):
    """The pool of candidates that the tuned generator draws."""

    subgroups: Count = Field(default=5, description="G, subgroups of candidates a class")
    pool_ipc: Count | None = Field(
        default=None, description="images a subgroup, of which the first ipc count; null draws ipc"
    )
    start: Literal["noise", "inversion"] = Field(
        default="noise", description="inversion: from inverted real images at start_level, beyond the paper"
    )
    start_level: int = Field(
        default=400,
        ge=1,
        le=999,
        description="timestep of inverted starts; the nearest grid point of invert is taken",
    )
    start_from: Literal["medoids", "random", "sparse"] = Field(
        default="medoids", description="real images to start from: k-means medoids, any, or the sparsest"
    )
    start_images: Count | None = Field(
        default=None,
        description="such images a class, dealt out in turn; null: pool_ipc, the same for every subgroup",
    )
    start_noise: Share | None = Field(
        default=None,
        description="share of fresh noise in a start's variance; null: what inversions lack of 1",
    )
    sampler: Literal["ancestral", "ddim"] = Field(
        default="ancestral", description="DDPM's random steps, or DDIM's fixed"
    )
    steps: int = Field(default=50, ge=2, le=1000, description="denoising steps an image")
    spacing: Literal["linspace", "leading"] = Field(
        default="linspace", description="timesteps of the steps: DiT's published, or diffusers' default"
    )
    guidance_scale: float = Field(default=4.0, ge=0, description="of classifier-free guidance; 1 is none")
    guidance_channels: Count = Field(
        default=3, description="latent channels that are guided; DiT's published sampler guides 3 of 4"
    )
    weights: Literal["ema", "last"] = Field(
        default="ema", description="tuned values to draw with: averaged, or the last"
    )
    batch_size: BatchSize = _rows(25, 256)


# What select's fingerprint and a run's stored settings state beside its fields, so that they keep their keys:
# separation is measured between the selected subgroups, of all classes. A recipe may state both too.
SETTLED: dict[str, object] = {"partners": "selected", "neighbours": None}


class Select(Section):
    """S³: which candidates stand for their class."""

    alpha: Weight = Field(default=0.4, description="weight of attraction to the own class's real images")
    beta: Weight = Field(default=0.9, description="weight of separation from the other classes")
    epsilon: Weight = Field(default=0.0, description="added to every distance before its logarithm")
    normalization: Literal["per_class", "none"] = Field(
        default="per_class", description="whether separation is divided by the number of other classes"
    )
    subgroups: Count | None = Field(
        default=None, description="choose among a class's first so many, with 1 among nothing; null: all"
    )
    solver: Literal["auto", "rounds", "exact"] = Field(
        default="auto",
        description="exact: branch and bound, up to 2,000 subgroups; auto: exact up to 200, then rounds",
    )
    restarts: int = Field(
        default=8, ge=0, description="further starts of the rounds, each from a random selection"
    )
    certify: Literal["auto", "none", "handshake", "trws"] = Field(
        default="auto", description="method that gives the lower bound"
    )
    unit: Literal["subgroup", "image"] = Field(
        default="subgroup", description="image: any ipc of a class's candidates, beyond the paper"
    )
    coverage: Weight = Field(
        default=0.0, description="weight of how well the chosen images cover the real ones; needs unit=image"
    )
    coverage_by: Literal["balls", "distance"] = Field(
        default="balls",
        description="share of real images with a chosen one in their k-nearest-neighbour ball, or closeness",
    )
    coverage_neighbours: Count = Field(default=5, description="k of the balls")
    exclude_copies: bool = Field(
        default=False,
        description="leave out candidates as near to a real image as the nearest percent of these to another",
    )
    real_images: Count | None = Field(
        default=200, description="K_i, real images a class that count, a seeded random subset; null: all"
    )
    memory: float = Field(
        default=2.5, gt=0, description="GB an actor may take: more shards where they need more"
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_settled(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for name, only in SETTLED.items():
            if value.get(name, only) != only:
                raise ValueError(f"select.{name}: is no field any more, got {value[name]!r}; leave it out")
        return {name: given for name, given in value.items() if name not in SETTLED}

    @model_serializer(mode="wrap")
    def _state_settled(self, fields: SerializerFunctionWrapHandler) -> dict[str, object]:
        return fields(self) | SETTLED

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


class Evaluate(Section):
    """How an image set is scored."""

    protocol: str = Field(
        default="quick",
        description="name of a protocol, with -val on validation images; none leaves evaluation out",
    )
    networks: Annotated[tuple[NetworkName, ...], Field(min_length=1)] | None = Field(
        default=None, description="classifiers to train; null: the protocol's own"
    )
    seeds: int = Field(
        default=3, ge=2, le=SEEDS_A_RUN, description="classifiers a set and network; 1 gives no interval"
    )
    baselines: tuple[Baseline, ...] = Field(
        default=("random",), description="ways to choose as many real images, scored beside the set"
    )
    full: bool = Field(default=True, description="also train on the full real set")
    neighbours: Count = Field(default=5, description="k of the coverage balls")
    pool_images: Count | None = Field(
        default=None, description="also measure the coverage of the pool's first so many candidates a class"
    )

    @field_validator("networks", "baselines")
    @classmethod
    def _arerefuse_twice(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return names and refuse_twice(names)
