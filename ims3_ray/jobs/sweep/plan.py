"""The trials of a sweep and each trial's configuration: a search over fields, or named rows compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ims3_ray.config.base import as_field, flatten
from ims3_ray.config.load import load_config, override_words
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import NO_PROTOCOL, validation_name
from ims3_ray.runs.tags import OBJECTIVE, OBJECTIVES, SPACE
from ims3_ray.stages.evaluate.teacher import REQUIRED_BASELINES, is_soft
from ims3_ray.storage.artifacts import fingerprint

from .rows import Rows
from .search_space import Choice, Space, Value, Values, json_key

SEARCHES = ("grid", "random", "bayes")
LAST = "evaluate"  # a trial's last stage


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search: `recipe` with `overrides`, over a space. `trials` counts the draws of random and bayes."""

    recipe: str
    overrides: Mapping[str, Value]
    space: Space
    search: str = "grid"
    trials: int = 20
    objective: tuple[str, ...] = ("accuracy",)
    asha: bool = False  # stop trials whose classifiers lag behind others of the same IPC
    evaluations: str = ""  # their fingerprint, once images are read

    last_shared: ClassVar[str] = "sample"  # the last stage that the driver runs before the trials

    def __post_init__(self):
        choices = ", ".join(OBJECTIVES)
        if self.search not in SEARCHES:
            raise InputError(f"--search: {self.search!r} is unknown; choose one of {', '.join(SEARCHES)}")
        if self.search != "grid" and self.trials < 1:
            raise InputError(f"--trials: {self.trials} trials; give at least 1")
        if not self.objective:
            raise InputError(f"--objective: is empty; choose from {choices}")
        for name in self.objective:
            if name not in OBJECTIVES:
                raise InputError(
                    f"--objective: {name!r} is a metric that no trial reports; choose from {choices}"
                )
            if self.objective.count(name) > 1:
                raise InputError(f"--objective: {name} stands twice; name it once")

    @property
    def base(self) -> Config:
        """The recipe with the overrides."""
        config = load_config(self.recipe, self.overrides)
        if config.evaluate.protocol == NO_PROTOCOL:
            raise InputError("evaluate.protocol: a sweep compares accuracies; name a protocol")
        return config

    @property
    def key(self) -> str:
        """Fingerprint of all that decides which trials there are and how they are scored."""
        return fingerprint([self.base.identity(), self.space.describe(), self._choices, self.evaluations])

    @property
    def _choices(self) -> list[object]:
        trials = None if self.search == "grid" else self.trials
        return [self.search, trials, list(self.objective), self.asha]

    def points(self) -> list[Values] | None:
        """The values of every trial; None if the search algorithm chooses them during the sweep.

        Raises InputError, which names the values, for a combination that the recipe refuses.
        """
        if self.search == "bayes":
            return None
        points = self.space.points(self.trials, self.base.seed, is_grid=self.search == "grid")
        for values in points:
            try:
                self.config(values)
            except InputError as error:
                raise InputError(f"{self._option}: {as_words(values)}: {error}") from error
        return points

    def selection_points(self) -> list[Values]:
        """Values of further runs that go as far as the selection."""
        return []

    def config(self, values: Mapping[str, Value]) -> Config:
        """A trial's run: scored on validation images, without the sets that every trial would train anew."""
        base = self.base
        cheaper: Values = {"evaluate.protocol": validation_name(base.evaluate.protocol)}
        defaults: Values = {"evaluate.full": False, "evaluate.unrefined": False}
        defaults["evaluate.baselines"] = sorted(REQUIRED_BASELINES) if is_soft(base.evaluate) else []
        cheaper |= {name: value for name, value in defaults.items() if name not in self.overrides}
        return load_config(self.recipe, {**self._fields(base, values), **cheaper})

    def winner(self, values: Mapping[str, Value]) -> Config:
        """The trial's run, scored as the recipe says. It shares the trial's distilled set."""
        return load_config(self.recipe, self._fields(self.base, values))

    def trial_tag(self, values: Mapping[str, Value]) -> str:
        """The key of a trial's MLflow run."""
        return f"{self.key}-{trial_key(values)}"

    @property
    def name(self) -> str:
        """The name of the sweep's MLflow run."""
        return f"sweep-{self.base.recipe}-{self.key}"

    def trial_name(self, number: int) -> str:
        """The name of a trial's MLflow run."""
        return f"{self.base.recipe}-{self.key}-{number:03d}"

    def trial_params(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """A trial's recipe by field, with the trial's own values of the fields that vary.

        The recipe alone names the pool that trials share: the largest sample.subgroups for all of them.
        """
        fields, own = flatten(self.config(values).results()), flatten(values)
        typed = {name: as_field(Config, name, own[name]) for name in own.keys() & fields.keys()}
        return fields | own | typed

    def params(self) -> dict[str, Value]:
        """The sweep's MLflow parameters: fields common to all trials, the space, and the search."""
        swept = tuple(f"{name}." for name in self.space.domains)
        base = flatten(self.base.results())
        common = {name: value for name, value in base.items() if not f"{name}.".startswith(swept)}
        space = {f"{SPACE}{name}": str(domain) for name, domain in self.space.describe().items()}
        options: Values = {"search": self.search, "asha": self.asha}
        options |= {"trials": self.trials} if self.search != "grid" else {}
        return common | space | options | {OBJECTIVE: ",".join(self.objective)}

    _option: ClassVar[str] = "--space"

    def _fields(self, base: Config, values: Mapping[str, Value]) -> Values:
        """All fields of a trial: every trial chooses from the candidates that the largest G and IPC need."""
        fields, domains = {**self.overrides, **values}, self.space.domains
        is_free = "select.subgroups" not in domains and base.select.subgroups is None
        if "sample.subgroups" in domains and is_free:
            fields["sample.subgroups"] = domains["sample.subgroups"].largest()
            fields["select.subgroups"] = values["sample.subgroups"]
        if "ipc" in domains and "sample.pool_ipc" not in domains and base.sample.pool_ipc is None:
            packing = domains.get("packing.factor", Choice((base.packing.factor,))).largest()
            fields["sample.pool_ipc"] = domains["ipc"].largest() * packing**2
        return fields


@dataclass(frozen=True, kw_only=True)
class RowSweep(Sweep):
    """A comparison: a grid of generated rows × IPC × generator seeds, scored as the recipe says."""

    rows: Rows
    pool_images: int | None = None  # candidates per class whose coverage is measured; None: not measured

    last_shared: ClassVar[str] = "export"
    _option: ClassVar[str] = "--rows"

    @property
    def _choices(self) -> list[object]:
        rows = [[row.name, dict(row.overrides), row.real, row.packing] for row in self.rows.rows]
        return [self.rows.baseline, rows, self.pool_images]

    @property
    def ipcs(self) -> tuple[int, ...]:
        return self.space.domains["ipc"].values  # pyright: ignore[reportAttributeAccessIssue] a Choice

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.space.domains["seed"].values  # pyright: ignore[reportAttributeAccessIssue] a Choice

    def selection_points(self) -> list[Values]:
        """Rows that choose single images also choose `pool_images` per class, so that coverage compares."""
        if self.pool_images is None or self.pool_images in self.ipcs:
            return []
        points: list[Values] = []
        for seed in self.seeds:
            for name in self.rows.generated:
                values = {"seed": seed, "row": name, "ipc": self.ipcs[0]}
                if self.selects_pool_images(self.config(values)):
                    points.append(values | {"ipc": self.pool_images})
        return points

    def selects_pool_images(self, config: Config) -> bool:
        """Whether a row's run selects single images, and can select `pool_images` per class."""
        has_enough = config.pool_ipc * config.sample.subgroups >= (self.pool_images or 0)
        is_single = config.packing.factor == 1 and config.select.unit == "image"
        return has_enough and is_single and config.makes_candidates

    def config(self, values: Mapping[str, Value]) -> Config:
        """A trial's run. Candidates are drawn for the largest IPC, unless the row says otherwise."""
        common = {"sample.pool_ipc": max(self.ipcs), "evaluate.full": False, "evaluate.unrefined": False}
        own = {"evaluate.baselines": self.rows.scored_by(values["row"])}
        own |= {"ipc": values["ipc"], "seed": values["seed"]}
        row = self.rows.generated[values["row"]]
        common["sample.pool_ipc"] *= row.packing**2
        return load_config(self.recipe, {**common, **self.overrides, **row.overrides, **own})

    def params(self) -> dict[str, Value]:
        return super().params() | {"baseline": self.rows.baseline}


def row_sweep(
    recipe: str,
    overrides: Mapping[str, Value],
    rows: Rows,
    ipcs: tuple[int, ...],
    seeds: tuple[int, ...],
    pool_images: int | None = None,
) -> RowSweep:
    """The comparison of `rows` at every IPC with every generator seed. Raises InputError like `Rows`."""
    domains = {"ipc": Choice(ipcs), "row": Choice(tuple(rows.generated)), "seed": Choice(seeds)}
    options = {"rows": rows, "pool_images": pool_images}
    sweep = RowSweep(recipe=recipe, overrides=overrides, space=Space(domains), **options)
    if sweep.base.packing.factor != 1:
        raise InputError("packing.factor: rows set it; give it in a file of rows, as rows/packed.yaml does")
    if is_soft(sweep.base.evaluate):
        raise InputError("evaluate.protocol: rows are not compared by soft labels; use another protocol")
    return sweep


def as_words(values: Mapping[str, Value]) -> str:
    """Values as command-line words."""
    return " ".join(override_words(values))


def trial_key(values: Mapping[str, Value]) -> str:
    """A trial's key within its sweep: the same for equal values."""
    return fingerprint(json_key(values))
