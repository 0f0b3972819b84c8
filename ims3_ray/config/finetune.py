"""The sections of fine-tuning: what is matched, and how it is trained."""

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from .base import Count, Section, Share, Weight

PAPER_BATCH = 8  # latents a step, for which the paper states the learning rate


class Minimax(Section):
    """Minimax Diffusion's criteria; weights and memory as it publishes them, once `im.minimax` is on."""

    representativeness: Weight = 0.002
    """Weight of closeness to the memory of real latents."""
    diversity: Weight = 0.008
    """Weight of distance to the memory of generated latents."""
    memory: Count = 64
    """Latents that each memory holds."""
    extreme: Literal["image", "class"] = "image"
    """class: of a class's images in the batch the worst one counts, as in the published code; else each."""


class InversionMatching(Section):
    """What fine-tuning matches beside the diffusion loss."""

    weight: Weight = 0.002
    """λ_IM of the paper; 0 leaves matching out."""
    grad_ratio: Weight | None = None
    """λ_IM as the ratio of gradient norms, matching to diffusion; replaces weight."""
    target: Literal["trajectory", "one_step"] = "trajectory"
    """What is matched; one_step is the published code's, all images of a batch with all."""
    metric: Literal["cosine", "l1", "l2"] = "cosine"
    """Distance to the target."""
    minimax: Minimax | None = None
    """Minimax Diffusion's criteria: true, or its fields."""

    @model_validator(mode="after")
    def _one_step_has_its_own_metric(self) -> "InversionMatching":
        if self.target == "one_step" and self.metric != "cosine":
            raise ValueError(f"im.metric: {self.metric} needs im.target=trajectory; one_step takes cosine")
        return self

    @field_validator("minimax", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        return {} if value is True else None if value is False else value


class Finetune(Section):
    """Training of the generator's difffit values."""

    epochs: int = Field(default=8, ge=0)
    """Passes over the latents; 0 keeps the pretrained model."""
    steps: Count | None = None
    """Steps after which training ends within its epochs; null: all of theirs."""
    labels: Literal["map", "position"] = "map"
    """position: a class is tuned as its place among the folders, as in the published code."""
    batch_size: Count | Literal["auto"] = PAPER_BATCH
    """Latents a step, a multiple of micro_batches; auto: 4 a GPU, and what hangs on it to match."""
    micro_batches: Count = 2
    """Parts of a batch, computed apart and summed in order: worker counts divide it, 1 is all at once."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW."""
    weight_decay: Weight = 0.0
    """Of AdamW."""
    label_dropout: Share = 0.1
    """Share of labels replaced by no class, for guidance."""
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    """Of the moving average of the weights, a step."""
    ema_warmup: bool = True
    """Begin with less decay, so that short runs don't keep the pretrained weights; published: false."""
    log_every: Count = 50
    """Steps between logged losses."""
    checkpoint_every: Count = 500
    """Steps between checkpoints, from which a killed run goes on."""

    @model_validator(mode="after")
    def _parts_fill_the_batch(self) -> "Finetune":
        if self.batch_size != "auto" and self.batch_size % self.micro_batches:
            raise ValueError(
                f"finetune.batch_size: {self.batch_size} is no multiple of micro_batches {self.micro_batches}"
            )
        return self

    @property
    def latents(self) -> int:
        """`batch_size` as a number; `auto` is resolved by then (`scaled_to`)."""
        assert self.batch_size != "auto", "scaled_to has been called"
        return self.batch_size

    def scaled_to(self, devices: int) -> "Finetune":
        """With a number for `auto`: PAPER_BATCH / 2 latents a device, and what that is for the other values.

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
