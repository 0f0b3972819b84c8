"""Fields of `ims3 pretrain`: a generator and a feature extractor of one's own."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from .base import Count, Section, Seed, Settings, Weight
from .data import Data
from .evaluation import NetworkName
from .settings import Workers

NORM_GROUPS = 8  # groups of the VAE's group norms


def _check_steps(steps: tuple[int, ...]) -> tuple[int, ...]:
    if len(steps) != 2 or steps[0] > steps[1]:
        raise ValueError("should be a number of steps, or [minimum, maximum]")
    return steps


def _from_number(steps: object) -> object:
    return (steps, steps) if isinstance(steps, int) else steps


Steps = Annotated[tuple[Count, ...], BeforeValidator(_from_number), AfterValidator(_check_steps)]
Channels = Annotated[int, Field(ge=NORM_GROUPS, multiple_of=NORM_GROUPS)]


class TrainSteps(Section):
    """Length of a training."""

    steps: Steps
    batch_size: Count = 64
    """Images per step."""

    def num_steps(self, epochs: int, images: int) -> int:
        """Returns the number of steps for this number of images."""
        return min(max(self.steps[0], epochs * images // self.batch_size), self.steps[1])

    @property
    def is_exact(self) -> bool:
        return self.steps[0] == self.steps[1]


class TrainVae(TrainSteps):
    """AutoencoderKL: L1 reconstruction and a small KL term. Learning rate 0.001."""

    steps: Steps = (500, 3000)
    """Training steps: an exact number, or [minimum, maximum] of the steps that `epochs` gives."""
    channels: Annotated[tuple[Channels, ...], Field(min_length=1)] = (16, 32, 64)
    """Channels per level, multiples of 8. Every level except the last halves the image."""
    latent_channels: Count = 4
    """Channels of a latent."""
    kl_weight: Weight = 1e-3
    """Weight of the KL divergence from a standard normal distribution."""


class TrainTransformer(TrainSteps):
    """DiT: predicts noise and variance. Label dropout 0.1, EMA decay 0.999."""

    steps: Steps = (4000, 12000)
    """Training steps: an exact number, or [minimum, maximum] of the steps that `epochs` gives."""
    hidden_size: Count = 128
    """Width of a token, a multiple of heads."""
    depth: Count = 6
    """Number of blocks."""
    heads: Count = 4
    """Attention heads per block."""
    patch_size: Count = 2
    """Side of a token's patch, in latent pixels."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""


class TrainExtractor(TrainSteps):
    """Feature extractor φ: a classifier whose penultimate features are used. Learning rate 0.001."""

    steps: Steps = (400, 3000)
    """Training steps: an exact number, or [minimum, maximum] of the steps that `epochs` gives."""
    network: NetworkName = "convnet3"
    """Architecture."""
    width: Count = 32
    """Channels of the first block."""


class Pretrain(Settings):
    """Training of a generator and an extractor from scratch (jobs/pretrain.py)."""

    model_config = SettingsConfigDict(env_prefix="IMS3_PRETRAIN_")

    seed: Seed = 0
    """Seed of all random numbers."""
    image_size: int = Field(default=32, ge=16)
    """Side of an image in pixels."""
    data: Data = Data(train="package://digits/train", mirror=False)
    micro_batches: Count = 2
    """Parts of a batch, summed in a fixed order. As many workers can share a step."""
    epochs: Count = 60
    """Passes over the images, within the limits of `steps`."""
    patience: int = Field(default=5, ge=0)
    """A training stops after this many of 25 scores on up to 2,000 held-out images without gain. 0: none."""
    vae: TrainVae = TrainVae()
    transformer: TrainTransformer = TrainTransformer()
    extractor: TrainExtractor = TrainExtractor()
    check_images: int = Field(default=1000, ge=0)
    """Samples that a second classifier labels, for the model card. 0: none."""
    check_guidance_scale: float = Field(default=1.5, ge=0)
    """Guidance scale of these samples."""
    workers: Workers = Workers()
    storage: str = "./runs"
    """Folder or URI of checkpoints and latents."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "Pretrain":
        transformer, shrink = self.transformer, 2 ** (len(self.vae.channels) - 1)
        side = self.image_size // shrink
        hidden = f"transformer.hidden_size: {transformer.hidden_size} is"
        rules = [
            (self.image_size, shrink, f"image_size: {self.image_size} is", "by which vae.channels shrink it"),
            (
                side,
                transformer.patch_size,
                f"image_size: its latents' side {side} is",
                "transformer.patch_size",
            ),
            (transformer.hidden_size, 4, hidden, "for position embeddings"),
            (transformer.hidden_size, transformer.heads, hidden, "transformer.heads"),
        ]
        for name in ("vae", "transformer", "extractor"):
            batch = getattr(self, name).batch_size
            rules.append((batch, self.micro_batches, f"{name}.batch_size: {batch} is", "micro_batches"))
        for number, divisor, subject, reason in rules:
            if number % divisor or not number:
                near = (number // divisor + 1) * divisor
                raise ValueError(f"{subject} no multiple of {divisor} ({reason}), as {near} is")
        return self
