"""The settings of each command: sections of the recipe, storage and workers.

Precedence: overrides (`sample.subgroups=20`), the recipe's YAML, environment variables (`IMS3_STORAGE`,
`IMS3_WORKERS__ACTORS`), defaults. All that changes a result is a field of the recipe and enters fingerprints;
`workers` and `storage` change only speed and place.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Count, Name, Section, Seed, Settings, canonical_location
from .data import Data
from .evaluation import NO_PROTOCOL, Evaluate, Export, Packing, Probe, Refine
from .sections import Embed, Encode, Finetune, InversionMatching, Invert, Model, Sample, Select

# (section, field) that may name a checkpoint on a hub
WEIGHTS = (("model", "path"), ("model", "vae"), ("embed", "extractor"), ("evaluate", "teacher"))
# (section, field) that may name a local path
LOCATIONS = (("data", "train"), ("data", "validation"), ("data", "test"), *WEIGHTS)


class Workers(Section):
    """Parallelism. null: sized to the machine or cluster. Only `device` and auto batches change results."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the stages. auto: a GPU if there is one."""
    cpus: Count | None = None
    """CPU cores of a run on this machine. null: those that affinity, cgroup and Slurm grant."""
    gpus: Count | None = None
    """GPUs to wait for before work starts, on a cluster that scales up. null: do not wait."""
    wait_s: Count = 1800
    """Maximum time to wait for these GPUs, in seconds."""
    actors: Count | None = None
    """Actors per stage."""
    min_actors: Count = 1
    """Minimum actors of a stage, while the cluster grows or after nodes are lost."""
    train_workers: Count | None = None
    """Workers of a training. At most micro_batches."""
    min_train_workers: Count | None = None
    """Elastic fine-tuning: minimum workers after nodes are lost. null: not elastic."""
    shards: Count | None = None
    """Actors that hold the candidates of a selection."""
    trials: Count | None = None
    """Concurrent trials of a sweep."""
    gpus_per_classifier: float = Field(default=0.25, gt=0, le=1)
    """Minimum share of a GPU per classifier. A classifier gets a whole GPU if there are enough."""
    strict: bool = False
    """Refuse artefacts and nodes of another environment (CPU or GPU model, torch build)."""


class Selecting(Settings):
    """Selection among candidates of any generator (jobs/select_subgroups.py)."""

    seed: Seed = 0
    """Seed of all random numbers."""
    ipc: Count = 10
    """Images per class to select, if select.unit=image."""
    select: Select = Select()
    workers: Workers = Workers()


class Evaluating(Settings):
    """Scoring of any image sets (jobs/evaluate.py). Each set defines its images per class."""

    seed: Seed = 0
    """Seed of all random numbers."""
    data: Data = Data()
    embed: Embed = Embed()
    evaluate: Evaluate = Evaluate()
    workers: Workers = Workers()
    storage: str = "./runs"
    """Folder or URI of unpacked images and features, reused by later commands."""


class Config(Settings):
    """A run: the sections of its recipe, storage and workers."""

    recipe: Name = "digits"
    """Name of the recipe in reports and records."""
    seed: Seed = 0
    """Seed of all random numbers."""
    ipc: Count = 10
    """Images per class (IPC) of the distilled set."""
    source: Literal["generator", "real"] = "generator"
    """Candidates: images that the generator draws, or real training images, for which it is not needed."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Pixels per side of a stored image, a multiple of packing.factor. null: generator's or protocol's."""
    data: Data = Data()
    model: Model = Model()
    encode: Encode = Encode()
    invert: Invert = Invert()
    im: InversionMatching = InversionMatching()
    finetune: Finetune = Finetune()
    embed: Embed = Embed()
    sample: Sample = Sample()
    select: Select = Select()
    packing: Packing = Packing()
    probe: Probe = Probe()
    refine: Refine = Refine()
    export: Export = Export()
    evaluate: Evaluate = Evaluate()
    workers: Workers = Workers()
    storage: str = "./runs"
    """Folder or URI of all artefacts and records."""

    @model_validator(mode="after")
    def _check_pool(self) -> "Config":
        subgroups = self.select.subgroups or self.sample.subgroups
        if subgroups > self.sample.subgroups:
            raise ValueError(
                f"select.subgroups: {subgroups} of sample.subgroups {self.sample.subgroups}; lower it"
            )
        size = self.pool_ipc * (subgroups if self.select.unit == "image" else 1)
        if self.makes_candidates and size < self.unpacked_ipc:
            wanted = f"ipc={self.ipc}"
            if self.packing.factor > 1:
                wanted += f" × packing.factor² = {self.unpacked_ipc}"
            raise ValueError(
                f"sample.pool_ipc: {self.pool_ipc} has {size} images to select {wanted} from; raise it"
            )
        return self

    @model_validator(mode="after")
    def _check_source(self) -> "Config":
        rule = ""
        if self.source == "generator":
            if self.image_size and self.packing.factor == 1:
                rule = f"image_size: {self.image_size} needs source=real, or packing.factor=2 or 3; drop it"
        elif not self.image_size and (self.probe.protocol or self.evaluate.protocol) == NO_PROTOCOL:
            rule = "image_size: no protocol sets it for source=real; set it, such as image_size=32"
        elif self.refine.steps and self.refine.space == "latent":
            rule = "refine.space: latent needs a generator; set refine.space=pixel and refine.lr=0.01"
        elif self.makes_candidates and self.select.exclude_copies:
            rule = "select.exclude_copies: with source=real all candidates are copies; set it to false"
        if rule:
            raise ValueError(rule)
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        if self.refine.steps and not self.probe.count and not self.refine.real_batch:
            raise ValueError("probe.count: 0, a new network per step, needs refine.real_batch, such as 128")
        if self.evaluate.pool_images and not self.makes_candidates:
            raise ValueError("evaluate.pool_images: refine.start=medoids makes no candidates; set it to null")
        is_split = self.finetune.micro_batches > 1 or self.finetune.batch_size == "auto"
        for field, needs_whole in (
            ("im.target: one_step", self.im.target == "one_step"),
            ("im.minimax: class", self.im.minimax == "class"),
        ):
            if needs_whole and is_split:
                raise ValueError(
                    f"{field} compares a whole batch; set finetune.micro_batches=1 and a number as batch_size"
                )
        return self

    @property
    def is_tuned(self) -> bool:
        """Whether the generator is fine-tuned."""
        return self.source == "generator" and self.makes_candidates and self.finetune.epochs > 0

    @property
    def makes_candidates(self) -> bool:
        """Whether candidates are drawn to select from; without them, real medoids are refined."""
        return not self.refine.steps or self.refine.start != "medoids"

    @property
    def kind_of_images(self) -> str:
        """The kind of images in the set, for its card."""
        if self.source == "generator" and self.makes_candidates:
            return "synthetic"
        return "refined real" if self.refine.steps else "real"

    @property
    def pool_ipc(self) -> int:
        """Images per subgroup."""
        return self.sample.pool_ipc or self.unpacked_ipc

    @property
    def unpacked_ipc(self) -> int:
        """Images per class that selection chooses and a classifier trains on: IPC times packing.factor²."""
        return self.ipc * self.packing.factor**2

    def results(self) -> dict[str, Any]:
        """Returns all values that a result depends on, as plain data."""
        return self.model_dump(mode="json", exclude={"workers": True, "storage": True, "data": {"root"}})

    def identity(self) -> dict[str, Any]:
        """Returns `results` with local paths resolved; fingerprints are computed from it."""
        values = self.results()
        for section, field in LOCATIONS:
            values[section][field] = canonical_location(values[section][field])
        return values
