"""What every stage of a run is given: the configuration, the data sets, the model's labels, the machine."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import NotRequired, TypedDict

import numpy as np

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.evaluation import Refine
from ims3_ray.config.sections import Embed, Encode, Invert, Sample
from ims3_ray.config.settings import Config
from ims3_ray.data.classes import NEW
from ims3_ray.data.distilled import Licences
from ims3_ray.data.images import ImageSet
from ims3_ray.models.device import Numerics
from ims3_ray.models.finetuned import TunedModel
from ims3_ray.models.generator import GeneratorInfo
from ims3_ray.storage.artifacts import Directory


class Inputs(TypedDict):
    """Fingerprints of what lies outside the storage."""

    images: str
    model: str
    extractor: str
    scored: NotRequired[str]
    teacher: NotRequired[str]


Batched = Encode | Invert | Embed | Sample | Refine  # sections whose batch size depends on the device


@dataclass(frozen=True)
class Context:
    """A run, resolved and checked. Stages read it and never change it."""

    config: Config
    storage: Directory
    machine: Machine
    images: dict[str, ImageSet]  # "train", and "validation" and "test" where they are given
    info: GeneratorInfo
    # the generator's label of every class, in the order of the training set's classes
    model_labels: list[int]
    numerics: Numerics
    inputs: Inputs
    notes: tuple[str, ...] = ()  # what the machine can't do as the recipe says, a line each
    on_metrics: Callable[[str, int, Mapping[str, float]], None] = lambda *_: None  # stage, step, metrics

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images["train"].classes

    @property
    def is_tuned(self) -> bool:
        """Whether the generator is fine-tuned, or kept as it was pretrained."""
        return self.config.finetune.epochs > 0

    @property
    def matches_trajectories(self) -> bool:
        """Whether fine-tuning matches the stored inversions."""
        return self.is_tuned and self.config.im.target == "trajectory"

    @property
    def starts_from_inversions(self) -> bool:
        """Whether candidates start from inverted real images."""
        return self.config.sample.start == "inversion"

    @property
    def num_tuned(self) -> int:
        """Images that the generator is tuned on."""
        counts = self.images["train"].counts()
        return int(np.minimum(counts, self.config.encode.images_per_class or counts.max()).sum())

    @property
    def num_candidates(self) -> int:
        return self.config.pool_ipc * len(self.classes) * self.config.sample.subgroups

    @property
    def num_views(self) -> int:
        """2 where every image is encoded with its mirror image."""
        return 2 if self.config.data.mirror else 1

    @property
    def licences(self) -> Licences:
        """What is known of the weights' and the images' licences, for the product's card."""
        stated = {"weights": self.config.model.licence, "images": self.config.data.licence}
        return {name: licence.model_dump() if licence else None for name, licence in stated.items()}

    def batch_size(self, section: Batched) -> int:
        return section.batch_size.on(self.machine.device)

    def values_of(self, section: Batched) -> dict[str, object]:
        """A section's values for a fingerprint, its batch size for this kind of device alone."""
        return {**section.model_dump(mode="json"), "batch_size": self.batch_size(section)}

    def generator_values(self) -> dict[str, object]:
        """Returns what the bits of every stage that runs the generator depend on."""
        config = self.config
        seed = config.seed if config.data.class_map == NEW else None
        return {
            "numerics": asdict(self.numerics),
            "model": [self.inputs["model"], config.model.heads, config.model.frequency_shift],
            "classes": [list(self.classes), self.model_labels, seed],
        }

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
