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
from ims3_ray.evaluation.protocols import Protocol
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


def real_size(config: Config) -> int:
    """Pixels per side of real images as candidates: the field `image_size`, or the protocol's."""
    if config.image_size:
        return config.image_size
    return probe_protocols(config.probe, config.evaluate.protocol)[0].image_size


@dataclass(frozen=True)
class Context:
    """A resolved and checked run. Stages read it and never change it."""

    config: Config
    storage: Directory
    machine: Machine
    images: dict[str, ImageSet]  # "train", and "validation" and "test" if they exist
    generator: GeneratorInfo | None  # None: candidates are real images
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
    def info(self) -> GeneratorInfo:
        assert self.generator, "only stages of the generator ask for it"
        return self.generator

    @property
    def matches_trajectories(self) -> bool:
        """Whether fine-tuning matches the stored inversions."""
        im = self.config.im
        return self.config.is_tuned and im.target != "one_step" and bool(im.weight or im.grad_ratio)

    @property
    def starts_from_inversions(self) -> bool:
        """Whether candidates start from inverted real images."""
        starts = self.generator is not None and self.config.sample.start == "inversion"
        return starts and self.config.makes_candidates

    @property
    def num_tuned(self) -> int:
        """Number of images that the generator is fine-tuned on."""
        counts = self.images["train"].counts()
        return int(np.minimum(counts, self.config.encode.images_per_class or counts.max()).sum())

    @property
    def num_candidates(self) -> int:
        if not self.config.makes_candidates:
            return 0
        per_class = self.config.pool_ipc * self.config.sample.subgroups
        if self.generator is None and self.config.select.unit == "image":
            return int(np.minimum(self.images["train"].counts(), per_class).sum())
        return per_class * len(self.classes)

    @property
    def probe_kinds(self) -> list[Protocol]:
        """Protocols of the probes."""
        return probe_protocols(self.config.probe, self.config.evaluate.protocol)

    @property
    def stored_size(self) -> int:
        """Pixels per side of an image of the distilled set."""
        config = self.config
        if self.generator is None or config.image_size:
            return real_size(config)
        if config.refine.steps and config.refine.space == "pixel":
            return self.probe_kinds[0].image_size
        return self.image_size

    @property
    def image_size(self) -> int:
        """Pixels per side at which φ sees an image: the generator's, or without one that of stored images."""
        return self.generator.image_size if self.generator else real_size(self.config)

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
        if self.config.source == "real":
            del stated["weights"]
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

    def tuned_model(self, adapter: Directory | None = None) -> TunedModel:
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
        )
