"""The context of a run that every stage receives: configuration, data sets, class labels, machine."""

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
from ims3_ray.data.images import ImageSet, Tiles
from ims3_ray.evaluation.probes import probe_protocols
from ims3_ray.models.device import Numerics
from ims3_ray.models.finetuned import TunedModel
from ims3_ray.models.generator import GeneratorInfo
from ims3_ray.storage.artifacts import Directory


class Inputs(TypedDict):
    """Fingerprints of inputs outside the storage."""

    images: str
    model: str
    extractor: str
    scored: NotRequired[str]
    teacher: NotRequired[str]


Batched = Encode | Invert | Embed | Sample | Refine  # sections whose batch size depends on the device


@dataclass(frozen=True)
class Context:
    """A resolved and checked run. Stages read it and never change it."""

    config: Config
    storage: Directory
    machine: Machine
    images: dict[str, ImageSet]  # "train", and "validation" and "test" if they exist
    info: GeneratorInfo
    # the generator's label per class, in the order of the training set's classes
    model_labels: list[int]
    numerics: Numerics
    inputs: Inputs
    notes: tuple[str, ...] = ()  # one line per setting that the machine cannot follow
    on_metrics: Callable[[str, int, Mapping[str, float]], None] = lambda *_: None  # stage, step, metrics

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images["train"].classes

    @property
    def is_tuned(self) -> bool:
        """Whether the generator is fine-tuned."""
        return self.config.finetune.epochs > 0

    @property
    def matches_trajectories(self) -> bool:
        """Whether fine-tuning matches the stored inversions."""
        return self.is_tuned and self.config.im.target != "one_step"

    @property
    def starts_from_inversions(self) -> bool:
        """Whether candidates start from inverted real images."""
        return self.config.sample.start == "inversion"

    @property
    def num_tuned(self) -> int:
        """Number of images that the generator is fine-tuned on."""
        counts = self.images["train"].counts()
        return int(np.minimum(counts, self.config.encode.images_per_class or counts.max()).sum())

    @property
    def num_candidates(self) -> int:
        return self.config.pool_ipc * len(self.classes) * self.config.sample.subgroups

    @property
    def stored_size(self) -> int:
        """Pixels per side of an image of the distilled set."""
        config = self.config
        if config.packing.image_size:
            return config.packing.image_size
        if config.refine.steps and config.refine.space == "pixel":
            return probe_protocols(config.probe, config.evaluate.protocol)[0].image_size
        return self.info.image_size

    @property
    def tiles(self) -> Tiles | None:
        """The parts of a stored image; None if the set is not packed."""
        factor = self.config.packing.factor
        return Tiles(factor, self.stored_size // factor) if factor > 1 else None

    @property
    def num_views(self) -> int:
        """2 if each image is encoded with its mirror image, else 1."""
        return 2 if self.config.data.mirror else 1

    @property
    def licences(self) -> Licences:
        """Declared licences of weights and images, for the distilled set's card."""
        stated = {"weights": self.config.model.licence, "images": self.config.data.licence}
        return {name: licence.model_dump() if licence else None for name, licence in stated.items()}

    def batch_size(self, section: Batched) -> int:
        return section.batch_size.on(self.machine.device)

    def values_of(self, section: Batched) -> dict[str, object]:
        """A section's values for a fingerprint, with the batch size of this device kind only."""
        return {**section.model_dump(mode="json"), "batch_size": self.batch_size(section)}

    def generator_values(self) -> dict[str, object]:
        """Fingerprint inputs of every stage that runs the generator."""
        config = self.config
        seed = config.seed if config.data.class_map == NEW else None
        return {
            "numerics": asdict(self.numerics),
            "model": [self.inputs["model"], config.model.heads, config.model.frequency_shift],
            "classes": [list(self.classes), self.model_labels, seed],
        }

    def tuned_model(self, adapter: Directory | None = None, weights: str = "ema") -> TunedModel:
        """The generator as actors load it, with `adapter` if given."""
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
