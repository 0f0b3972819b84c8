"""What a sweep runs: a recipe, the fields that vary, how values are chosen, every trial's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass

from ims3_ray.config.load import load_config
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import NO_PROTOCOL, validation_name
from ims3_ray.runs.mlflow_tracker import flatten
from ims3_ray.runs.tags import OBJECTIVE, OBJECTIVES, SPACE
from ims3_ray.storage.artifacts import fingerprint

from .search_space import Space, Value, Values, key_of

SEARCHES = ("grid", "random", "bayes")


@dataclass(frozen=True)
class Sweep:
    """`recipe` with `overrides`, over a space; `trials` is how many of it are drawn, of a grid all."""

    recipe: str
    overrides: Mapping[str, Value]
    space: Space
    search: str
    trials: int
    objective: tuple[str, ...] = ("accuracy",)
    asha: bool = False  # stop trials whose accuracy, while they train, is far from the best of their IPC

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
        """The recipe with the overrides, nothing varied."""
        config = load_config(self.recipe, self.overrides)
        if config.evaluate.protocol == NO_PROTOCOL:
            raise InputError("evaluate.protocol: a sweep compares accuracies; name a protocol")
        return config

    @property
    def key(self) -> str:
        """Fingerprint of all that decides which trials there are and how they are scored."""
        trials = None if self.search == "grid" else self.trials
        choices = [self.search, trials, list(self.objective), self.asha]
        return fingerprint([self.base.identity(), self.space.describe(), choices])

    def points(self) -> list[Values] | None:
        """The values of every trial; None where the searcher chooses them while trials run.

        InputError, which names the values, for a combination that the recipe does not take.
        """
        if self.search == "bayes":
            return None
        is_grid = self.search == "grid"
        points = self.space.grid() if is_grid else self.space.random(self.trials, self.base.seed)
        for values in points:
            try:
                self.config(values)
            except InputError as error:
                raise InputError(f"--space: {as_words(values)}: {error}") from error
        return points

    def values(self, drawn: Mapping[str, Value]) -> Values:
        """A trial's values out of what Tune calls it with: one of `points`, or what the searcher drew."""
        values = drawn.get("values")
        return dict(values) if isinstance(values, dict) else self.space.decode(drawn)

    def config(self, values: Mapping[str, Value]) -> Config:
        """A trial's run: scored on validation images, without the sets that all trials would train anew."""
        base = self.base
        cheaper: Values = {"evaluate.protocol": validation_name(base.evaluate.protocol)}
        left_out: Values = {"evaluate.full": False, "evaluate.unrefined": False, "evaluate.baselines": []}
        cheaper |= {field: value for field, value in left_out.items() if field not in self.overrides}
        return load_config(self.recipe, {**self._fields(base, values), **cheaper})

    def winner(self, values: Mapping[str, Value]) -> Config:
        """The same run as a person would make it, scored as the recipe says. It finds what the trial made."""
        return load_config(self.recipe, self._fields(self.base, values))

    def trial_tag(self, values: Mapping[str, Value]) -> str:
        """The key of a trial's run in MLflow."""
        return f"{self.key}-{trial_key(values)}"

    @property
    def name(self) -> str:
        """Of its run in MLflow."""
        return f"sweep-{self.base.recipe}-{self.key}"

    def trial_name(self, number: int) -> str:
        """Of a trial's run in MLflow."""
        return f"{self.base.recipe}-{self.key}-{number:03d}"

    def trial_params(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """A trial's recipe by field, with its own values of the fields that vary.

        Its recipe names the candidates that trials share: the largest sample.subgroups for all of them.
        """
        return flatten(self.config(values).results()) | flatten(values)

    def params(self) -> dict[str, Value]:
        """The sweep's: what all trials have in common, the space, and how it is searched."""
        swept = tuple(f"{field}." for field in self.space.domains)
        base = flatten(self.base.results())
        common = {field: value for field, value in base.items() if not f"{field}.".startswith(swept)}
        space = {f"{SPACE}{field}": str(domain) for field, domain in self.space.describe().items()}
        options = {"search": self.search, "trials": self.trials, "asha": self.asha}
        return common | space | options | {OBJECTIVE: ",".join(self.objective)}

    def _fields(self, base: Config, values: Mapping[str, Value]) -> Values:
        """All fields of a trial: every trial chooses from the candidates that the largest G and IPC need."""
        fields, domains = {**self.overrides, **values}, self.space.domains
        is_free = "select.subgroups" not in domains and base.select.subgroups is None
        if "sample.subgroups" in domains and is_free:
            fields["sample.subgroups"] = domains["sample.subgroups"].largest()
            fields["select.subgroups"] = values["sample.subgroups"]
        if "ipc" in domains and "sample.pool_ipc" not in domains and base.sample.pool_ipc is None:
            fields["sample.pool_ipc"] = domains["ipc"].largest()
        return fields


def as_words(values: Mapping[str, Value]) -> str:
    """Values as a person would write them."""
    return " ".join(f"{field}={value}" for field, value in values.items())


def trial_key(values: Mapping[str, Value]) -> str:
    """What a trial is called within its sweep: the same for equal values."""
    return fingerprint(key_of(values))
