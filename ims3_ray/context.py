"""What every stage of a run is given: the configuration, the data sets, the model's labels, the machine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .artifacts import Directory
from .cluster import Machine
from .config import Config
from .data.classes import NEW
from .data.images import ImageSet
from .models.device import Numerics
from .models.generator import GeneratorInfo
from .models.tuned import TunedModel


def _unheard(stage: str, step: int, metrics: dict[str, float]) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """A run, resolved and checked. Stages read it and never change it."""

    config: Config
    storage: Directory
    machine: Machine
    images: dict[str, ImageSet]  # "train", and "validation" and "test" where they are given
    info: GeneratorInfo
    model_labels: list[int]  # the generator's label of every class, in the order of the training set's classes
    numerics: Numerics
    notes: tuple[str, ...] = ()  # what the machine can't do as the recipe says, a line each
    inputs: dict[str, str] = field(default_factory=dict)  # fingerprints of what lies outside the storage
    on_metrics: Callable[[str, int, dict[str, float]], None] = _unheard  # stage, step, metrics: while a stage runs

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images["train"].classes

    def batch_size(self, section: Any) -> int:
        return section.batch_size.on(self.machine.device)

    def tuned_model(self, adapter: Directory | None = None, weights: str = "ema") -> TunedModel:
        """The generator, with the adapter where one is given, as actors load it."""
        model = self.config.model
        return TunedModel(
            path=model.path,
            heads=model.heads,
            frequency_shift=model.frequency_shift,
            numerics=self.numerics,
            new_classes=len(self.classes) if self.config.data.class_map == NEW else None,
            seed=self.config.seed,
            adapter=adapter,
            weights=weights,
        )
