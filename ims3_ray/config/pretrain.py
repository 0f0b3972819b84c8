"""The configuration of pretraining (jobs/pretrain.py): what is trained, on what, for how long."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from .base import Count, Section, Seed, Settings, Share, Weight
from .data import Data
from .sections import NetworkName
from .settings import Workers

NORM_GROUPS = 8  # of the VAE's group norms


Channels = Annotated[int, Field(ge=NORM_GROUPS, multiple_of=NORM_GROUPS)]


class TrainVae(Section):
    """AutoencoderKL: L1 reconstruction plus a weak pull of the latents towards a normal distribution."""

    channels: Annotated[tuple[Channels, ...], Field(min_length=1)] = (16, 32, 64)
    """Channels of each level, multiples of 8; every level but the last halves the image."""
    latent_channels: Count = 4
    """Channels of a latent."""
    kl_weight: Weight = 1e-3
    """Weight of the pull."""
    steps: Count = 1500
    """Steps of training."""
    batch_size: Count = 64
    """Images a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""


class TrainTransformer(Section):
    """DiT: noise and variance prediction with label dropout, exponential moving average of the weights."""

    hidden_size: Count = 128
    """Width of a token, a multiple of heads."""
    depth: Count = 6
    """Blocks."""
    heads: Count = 4
    """Attention heads a block."""
    patch_size: Count = 2
    """Latent pixels a side of a token's patch."""
    label_dropout: Share = 0.1
    """Share of labels replaced by no class, for guidance."""
    steps: Count = 12000
    """Steps of training."""
    batch_size: Count = 64
    """Images a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the moving average of the weights, a step."""


class TrainExtractor(Section):
    """φ: one of the evaluation networks, trained to classify; its penultimate features serve."""

    network: NetworkName = "convnet3"
    """Which of the evaluation networks."""
    width: Count = 32
    """Channels of its first layer."""
    steps: Count = 1500
    """Steps of training."""
    batch_size: Count = 64
    """Images a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""


class Pretrain(Settings):
    """A generator and an extractor of one's own, from class folders (jobs/pretrain.py)."""

    model_config = SettingsConfigDict(env_prefix="IMS3_PRETRAIN_")

    seed: Seed = 0
    """Every random draw follows from it."""
    image_size: int = Field(default=32, ge=16)
    """Pixels a side."""
    data: Data = Data(train="package://digits/train", mirror=False)
    micro_batches: Count = 2
    """Parts of a batch whose gradients are summed in order."""
    vae: TrainVae = TrainVae()
    transformer: TrainTransformer = TrainTransformer()
    extractor: TrainExtractor = TrainExtractor()
    check_images: int = Field(default=1000, ge=0)
    """Samples that a second classifier judges, for the model card."""
    check_guidance_scale: float = Field(default=1.5, ge=0)
    """Guidance scale of those samples."""
    log_every: Count = 100
    """Steps between logged losses."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    workers: Workers = Workers()
    storage: str = "./runs"
    """Folder or URI of the checkpoints."""

    @model_validator(mode="after")
    def _sizes_fit_each_other(self) -> "Pretrain":
        sizes, shrunk = self.transformer, 2 ** (len(self.vae.channels) - 1)
        side, hidden = (
            self.image_size // shrunk,
            f"transformer.hidden_size: {self.transformer.hidden_size} is",
        )
        rules = [
            (self.image_size, shrunk, f"image_size: {self.image_size} is", "by which vae.channels shrink it"),
            (side, sizes.patch_size, f"image_size: latents of {side} are", "transformer.patch_size"),
            (sizes.hidden_size, 4, hidden, "as a position takes"),
            (sizes.hidden_size, sizes.heads, hidden, "transformer.heads"),
        ]
        for name in ("vae", "transformer", "extractor"):
            batch = getattr(self, name).batch_size
            rules.append((batch, self.micro_batches, f"{name}.batch_size: {batch} is", "micro_batches"))
        for number, divisor, what, why in rules:
            if number % divisor or not number:
                raise ValueError(f"{what} no multiple of {divisor} ({why})")
        return self
