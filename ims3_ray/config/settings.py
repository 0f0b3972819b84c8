"""What each command is told: the sections that it takes, where it stores, and how many work on it.

Sources, strongest first: overrides (`sample.subgroups=20`), the recipe's YAML, environment variables
(`IMS3_STORAGE`, `IMS3_WORKERS__ACTORS`), defaults: the environment fills in what a recipe leaves open and
never bends what it says. All that changes a result stands in the recipe's sections and is fingerprinted;
`Workers` and `storage` change speed and place alone.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from .base import Count, Name, Section, Seed, Settings, one_spelling
from .data import Data
from .finetune import Finetune, InversionMatching
from .refinement import Probe, Refine
from .sections import (
    Embed,
    Encode,
    Evaluate,
    Export,
    Invert,
    Model,
    Sample,
    Select,
)

# fields that may name a hub id
WEIGHTS = (("model", "path"), ("model", "vae"), ("embed", "extractor"), ("evaluate", "teacher"))
# fields that may name a local path
PLACES = (("data", "train"), ("data", "validation"), ("data", "test"), *WEIGHTS)


class Workers(Section):
    """No result depends on these. null sizes a number to the machine or cluster at hand."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    gpus: Count | None = None
    """Begin once the cluster has so many: one that was scaled down to its head grows to them."""
    wait_s: Count = 1800
    """Seconds to wait for gpus: those that came cost money while the others are waited for."""
    actors: Count | None = None
    """Actors of a stage's pool."""
    min_actors: Count = 1
    """Actors a pool works with while the cluster grows or after nodes are lost."""
    train_workers: Count | None = None
    """Workers of a training; they divide micro_batches."""
    min_train_workers: Count | None = None
    """Lets fine-tuning go on with so few when nodes are lost, and grow again."""
    shards: Count | None = None
    """Actors that a selection's candidates are spread over."""
    trials: Count | None = None
    """Trials of a sweep at once."""
    gpus_per_classifier: float = Field(default=0.25, gt=0, le=1)
    """Least share of a GPU; a classifier takes a whole one as long as there are GPUs for all."""
    strict: bool = False
    """Refuse to mix artefacts or nodes of different environments (CPU or GPU model, torch build)."""


class Selecting(Settings):
    """Selection alone, from anybody's candidates (jobs/select_subgroups.py)."""

    seed: Seed = 0
    """Every random draw follows from it."""
    ipc: Count = 10
    """Images a class that are chosen, where select.unit=image."""
    select: Select = Select()
    workers: Workers = Workers()


class Evaluating(Settings):
    """Scoring anybody's image sets (jobs/evaluate.py); the number of images a class is read off each set."""

    seed: Seed = 0
    """Every random draw follows from it."""
    data: Data = Data()
    embed: Embed = Embed()
    evaluate: Evaluate = Evaluate()
    workers: Workers = Workers()
    storage: str = "./runs"
    """Folder or URI of what is unpacked and embedded once."""


class Config(Settings):
    """A run: the recipe's sections, where it stores, and how many work on it."""

    recipe: Name = "digits"
    """Name of the recipe, as pages and records state it."""
    seed: Seed = 0
    """Every random draw follows from it."""
    ipc: Count = 10
    """Images a class that are chosen."""
    data: Data = Data()
    model: Model = Model()
    encode: Encode = Encode()
    invert: Invert = Invert()
    im: InversionMatching = InversionMatching()
    finetune: Finetune = Finetune()
    embed: Embed = Embed()
    sample: Sample = Sample()
    select: Select = Select()
    probe: Probe = Probe()
    refine: Refine = Refine()
    export: Export = Export()
    evaluate: Evaluate = Evaluate()
    workers: Workers = Workers()
    storage: str = "./runs"
    """Folder or URI where all is kept."""

    @model_validator(mode="after")
    def _pool_holds_what_is_chosen(self) -> "Config":
        subgroups = self.select.subgroups or self.sample.subgroups
        if subgroups > self.sample.subgroups:
            raise ValueError(
                f"select.subgroups: {subgroups} of sample.subgroups {self.sample.subgroups}; lower it"
            )
        held = self.pool_ipc * (subgroups if self.select.unit == "image" else 1)
        if held < self.ipc:
            raise ValueError(
                f"sample.pool_ipc: {self.pool_ipc} holds {held} images to choose ipc={self.ipc} from; "
                "raise it"
            )
        return self

    @model_validator(mode="after")
    def _published_criteria_see_the_whole_batch(self) -> "Config":
        for field, is_on in (
            ("im.target: one_step", self.im.target == "one_step"),
            ("im.minimax.extreme: class", self.im.minimax and self.im.minimax.extreme == "class"),
        ):
            if is_on and (self.finetune.micro_batches > 1 or self.finetune.batch_size == "auto"):
                raise ValueError(
                    f"{field} compares a whole batch; give finetune.micro_batches=1, and a number of latents"
                )
        return self

    @property
    def pool_ipc(self) -> int:
        """Images drawn a subgroup."""
        return self.sample.pool_ipc or self.ipc

    def results(self) -> dict[str, Any]:
        """All that a result depends on, as plain data."""
        return self.model_dump(mode="json", exclude={"workers": True, "storage": True, "data": {"root"}})

    def identity(self) -> dict[str, Any]:
        """`results`, the same for every way of writing a local path: what fingerprints are made of."""
        values = self.results()
        for section, field in PLACES:
            values[section][field] = one_spelling(values[section][field])
        return values
