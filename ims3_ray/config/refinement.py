"""The sections of refinement, beyond the paper: probes, and how the images that were chosen are moved."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from .base import BatchSize, Count, Section, Weight
from .data import refuse_twice
from .sections import NetworkName, ProtocolSpec


class Probe(Section):
    """Networks trained on the real images, by which refinement measures."""

    networks: Annotated[tuple[NetworkName, ...], Field(min_length=1)] | None = None
    """Kinds of network; null: the protocol's own."""
    width: Count | None = None
    """Channels of their first block; null: the protocol's, or the published one."""
    count: Count = 4
    """Networks of each kind, from different seeds."""
    points: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 5, 10, 20)
    """Steps of their training after which each is kept."""
    protocol: ProtocolSpec | None = None
    """Whose image size, augmentation and training are theirs; null: evaluate.protocol."""

    @field_validator("networks")
    @classmethod
    def _refuse_twice(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return names and refuse_twice(names)

    @field_validator("points")
    @classmethod
    def _ascend(cls, points: tuple[int, ...]) -> tuple[int, ...]:
        if list(points) != sorted(set(points)):
            raise ValueError(f"points: {list(points)} must ascend, each one once")
        return points


class Refine(Section):
    """Moving the chosen images until networks learn from them what they learn from real ones."""

    steps: int = Field(default=0, ge=0)
    """Steps of every class; 0 leaves the images as they were drawn, the paper's form."""
    objective: Literal["gradients", "filters", "features", "embeddings"] = "gradients"
    """What is matched: gradients of the probes' loss, by tensor or filter, or means of maps or embeddings."""
    space: Literal["latent", "pixel"] = "latent"
    """What is moved: latents of the generator's VAE, or pixels at the size that classifiers see."""
    start: Literal["selection", "medoids"] = "selection"
    """medoids: real images, k-means medoids of their class, in place of those selected."""
    lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Learning rate of Adam, on latents of about unit variance or pixels of 0 … 1."""
    views: Count = 2
    """Augmented views of every image a step; of siamese augmentation one, which real images share."""
    real_images: Count | None = None
    """Real images of the class that a probe's target is measured on, a seeded draw; null: all."""
    stay: Weight = 0.0
    """Weight of the mean squared distance to the start."""
    batch_size: BatchSize = BatchSize(cpu=64, cuda=16)
    """Images decoded at once; of a larger class part by part, in less memory and half as long again."""
