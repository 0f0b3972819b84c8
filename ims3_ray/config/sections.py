"""The sections of a recipe up to selection, one per stage. Scoring and refinement: evaluation.py.

`--help` and docs/configuration.md print the docstrings of the fields (field_docs.py).
"""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .base import Arithmetic, BatchSize, Count, Section, Share, Weight
from .data import Licence

PAPER_BATCH = 8  # latents per step, for which the paper states the learning rate
UNTRAINED = "untrained:convnet3"  # a φ of random weights
Timestep = Annotated[int, Field(ge=0, le=999)]
Interval = Annotated[tuple[Timestep, ...], Field(min_length=2, max_length=2)]


class Model(Section):
    """The pretrained generator."""

    path: str = "package://digits"
    """Diffusers folder, original DiT .pt file, hub id (org/name or org/name@revision) or package://digits."""
    vae: str | None = None
    """Folder or hub id of the VAE. Needed with an original DiT .pt file."""
    heads: Count | None = None
    """Attention heads of a .pt file. null: by the published size."""
    frequency_shift: Literal[0, 1] | None = None
    """Timestep frequencies: 0 as DiT, 1 as diffusers. null: as the checkpoint says."""
    precision: Arithmetic = Arithmetic()
    """Precision of matrix products; trained parameters are always fp32."""
    compile: bool = True
    """On a GPU, compile the transformer's blocks by torch.compile. No effect on a CPU."""
    cuda_graphs: bool = False
    """On a GPU, record the transformer's passes as CUDA graphs and replay them; saves launch time."""
    licence: Licence | None = None
    """Licence of the weights, for the card of the distilled set. null: the card says "not stated"."""


class Encode(Section):
    """Latents of the training images."""

    images_per_class: Count | None = None
    """Images per class to encode and tune on, a seeded random subset. null: all."""
    batch_size: BatchSize = BatchSize(cpu=50, cuda=64)
    """Images per forward pass."""


class Invert(Section):
    """DDIM inversion of the latents."""

    steps: int = Field(default=10, ge=1, le=999)
    """S, inversion steps from timestep 0 to 999. Fine-tuning matches the latents after each step."""
    batch_size: BatchSize = BatchSize(cpu=50, cuda=128)
    """Latents per forward pass. Mirror images share a batch."""


class InversionMatching(Section):
    """Loss terms of fine-tuning beside the diffusion loss."""

    weight: Weight = 0.002
    """λ_IM, weight of the matching loss, as in the paper. 0: no matching."""
    grad_ratio: Weight | None = None
    """Sets λ_IM by the ratio of gradient norms, matching to diffusion. Replaces weight."""
    target: Literal["trajectory", "same_level", "one_step"] = "trajectory"
    """Matched with the inversion: a step down its grid, or x̂0 at its level; or as the published code."""
    minimax: Literal["image", "class"] | None = None
    """Minimax Diffusion's criteria: for each image, or the worst image per class (published). null: off."""


class Finetune(Section):
    """Training of the generator's DiffFit parameters."""

    epochs: int = Field(default=8, ge=0)
    """Epochs over the latents. 0: keep the pretrained model."""
    steps: Count | None = None
    """Maximum number of training steps within these epochs. null: no maximum."""
    labels: Literal["map", "position"] = "map"
    """Labels in training: by data.class_map, or the folder's position, as the published code."""
    batch_size: Count | Literal["auto"] = PAPER_BATCH
    """Latents per step, a multiple of micro_batches. auto: 4 per GPU; scales lr, steps and ema_decay."""
    micro_batches: Count = 2
    """Parts of a batch, summed in a fixed order. As many workers can share a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW (no weight decay), constant, as in the paper."""
    label_dropout: Share = 0.1
    """Share of labels replaced by the null label, for classifier-free guidance."""
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    """Decay per step of the exponential moving average (EMA) of the parameters."""
    ema_warmup: bool = True
    """Start with a smaller decay, so that short trainings forget initial values. Published code: false."""
    log_every: Count = 50
    """Steps between logged losses."""
    checkpoint_every: Count = 500
    """Steps between checkpoints. An interrupted training resumes from the last one."""

    @model_validator(mode="after")
    def _check_batch_size(self) -> "Finetune":
        if self.batch_size != "auto" and self.batch_size % self.micro_batches:
            raise ValueError(
                f"finetune.batch_size: {self.batch_size} is no multiple of micro_batches {self.micro_batches}"
            )
        return self

    @property
    def latents(self) -> int:
        """`batch_size` as a number. Call `scaled_to` first if it is `auto`."""
        assert self.batch_size != "auto", "scaled_to has been called"
        return self.batch_size

    def scaled_to(self, devices: int) -> "Finetune":
        """Replaces `auto` by PAPER_BATCH / 2 latents per device and scales the other values to match.

        A batch k times as large takes 1/k of the steps, √k times the learning rate (Adam's rule: Malladi et
        al. 2022, arXiv 2205.10287) and an average of decay^k (Busbridge et al. 2023, arXiv 2307.13813).
        """
        if self.batch_size != "auto":
            return self
        parts = max(2, devices)
        k = parts / 2
        return self.model_copy(
            update={
                "batch_size": parts * PAPER_BATCH // 2,
                "micro_batches": parts,
                "lr": self.lr * math.sqrt(k),
                "ema_decay": self.ema_decay**k,
                "steps": None if self.steps is None else math.ceil(self.steps / k),
            }
        )


class Embed(Section):
    """Features of real images and candidates."""

    extractor: str = "package://digits"
    """φ: timm:NAME (or NAME@revision), a folder, a hub id, package://digits, or untrained:convnet3."""
    batch_size: BatchSize = BatchSize(cpu=100, cuda=256)
    """Images per forward pass."""


class Sample(Section):
    """The pool of candidates that the generator draws."""

    subgroups: Count = 5
    """G, candidate subgroups per class."""
    pool_ipc: Count | None = None
    """Images per subgroup. Subgroup mode uses the first `ipc` of them. null: ipc × packing.factor²."""
    start: Literal["noise", "inversion"] = "noise"
    """Initial latents: noise (paper), or inverted real images at start_level."""
    start_level: int = Field(default=400, ge=1, le=999)
    """Timestep at which inverted images start, rounded to the nearest step of invert."""
    start_images: Count | None = None
    """Inverted images per class: k-means medoids, in turn. null: pool_ipc, the same for every subgroup."""
    sampler: Literal["ancestral", "ddim", "dpm"] = "ancestral"
    """DDPM's random steps (paper), DDIM's deterministic ones, or DPM-Solver++ of second order."""
    steps: int = Field(default=50, ge=2, le=1000)
    """Denoising steps per image."""
    spacing: Literal["linspace", "leading"] = "linspace"
    """Timesteps of the steps: as DiT, or as diffusers' default. dpm has its own, even in log SNR."""
    guidance_scale: float = Field(default=4.0, ge=0)
    """Scale of classifier-free guidance, as DiT's sampler. 1: no guidance."""
    guidance_channels: Count = 3
    """Guided latent channels. DiT's sampler guides 3 of 4."""
    guidance_interval: Interval | None = None
    """First and last timestep of classifier-free guidance. null: all."""
    batch_size: BatchSize = BatchSize(cpu=25, cuda=64)
    """Images per forward pass. A batch is the work of one GPU, so large batches leave GPUs idle."""

    @field_validator("guidance_interval")
    @classmethod
    def _check_order(cls, interval: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if interval and interval[0] > interval[1]:
            raise ValueError(f"should go from the lower to the higher timestep, got {list(interval)}")
        return interval


class Select(Section):
    """S³: the selection of candidates."""

    alpha: Weight = 0.4
    """α, weight of closeness to the real images of the same class, as in the published code."""
    beta: Weight = 0.9
    """β, weight of separation from other classes, as in the published code."""
    epsilon: Weight = 0.0
    """Added to every distance before its logarithm. Set 1e-6 if centroids coincide."""
    normalization: Literal["per_class", "none"] = "per_class"
    """Divide separation by the number of other classes (paper), or not (published code)."""
    subgroups: Count | None = None
    """Consider only the first N subgroups of a class; 1 disables selection. null: all."""
    solver: Literal["auto", "rounds", "exact"] = "auto"
    """exact: branch and bound, up to 2,000 subgroups; rounds: local search; auto: exact up to 200."""
    restarts: int = Field(default=8, ge=0)
    """Random restarts of the local search."""
    lower_bound: Literal["auto", "none", "series", "trws"] = "auto"
    """Lower bound of the objective: series is tight for many classes, trws for few; auto: the better one."""
    unit: Literal["subgroup", "image"] = "subgroup"
    """Select one subgroup per class (paper), or any ipc images of the class's candidates."""
    coverage: Weight = 0.0
    """Weight of coverage: how close real images are to the nearest selected one. Needs unit=image."""
    exclude_copies: bool = False
    """Exclude candidates closer to a real image than 99 % of real images are to their neighbour."""
    real_images: Count | None = 200
    """K_i, real images per class that count, a seeded random subset. null: all."""
    memory_gb: float = Field(default=4.0, gt=0)
    """Maximum memory per actor and of the lower bound, in GB. Larger problems get more shards."""

    @model_validator(mode="after")
    def _check_unit(self) -> "Select":
        is_image = self.unit == "image"
        rules = (
            (self.coverage and not is_image, f"coverage: {self.coverage} needs select.unit=image"),
            (self.exclude_copies and not is_image, "exclude_copies: needs select.unit=image"),
            (is_image and self.solver == "exact", "solver: exact needs select.unit=subgroup"),
        )
        for is_broken, rule in rules:
            if is_broken:
                raise ValueError(f"select.{rule}")
        return self
