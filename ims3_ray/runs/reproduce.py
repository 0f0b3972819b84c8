"""The command that reproduces a run: its recipe with the fields that differ, as a person would type them."""

import ast
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import yaml

from ims3_ray.config.load import load_config, recipe_names
from ims3_ray.errors import InputError

from .tracking import MAX_PARAM, flatten

STANDIN = "digits"  # for a recipe file of one's own: all that differs from a named one says the same
MOST_NOTES = 5
PLACE_AND_SPEED = ("storage", "workers")  # change no result

Values = Mapping[str, object]  # by field, as `sample.subgroups`


@dataclass(frozen=True)
class Reproduction:
    """`notes` say, a line each, where the command does not give what the run had."""

    recipe: str
    overrides: dict[str, object]
    notes: list[str]

    @property
    def words(self) -> list[str]:
        fields = [f"{field}={_yaml_word(value)}" for field, value in self.overrides.items()]
        return ["python", "jobs/distill.py", "--recipe", self.recipe, *fields]

    @property
    def command(self) -> str:
        return shlex.join(self.words)


def reproduce(params: Mapping[str, str], recipe_file: bytes | None) -> Reproduction:
    """The command for a run with these MLflow parameters, and its recipe.yaml where that is known.

    InputError for a run whose parameters are no recipe's.
    """
    if "recipe" not in params or "sample.subgroups" not in params:
        raise InputError(
            "--reproduce: this run's parameters are no recipe; name a distillation or a trial of a sweep"
        )
    recipe = params["recipe"] if params["recipe"] in recipe_names() else STANDIN
    with _without_environment():
        base = flatten(load_config(recipe).results())
        if recipe_file:
            logged = yaml.safe_load(recipe_file)
            values = flatten({name: value for name, value in logged.items() if name not in PLACE_AND_SPEED})
            return _minimal(recipe, base, values, cut=[])
        values: dict[str, object] = {}
        cut = []
        for field, text in params.items():
            if len(text) < MAX_PARAM:
                values[field] = _parse(text, base.get(field))
            elif str(base.get(field))[:MAX_PARAM] == text:
                values[field] = base[field]
            else:
                cut.append(field)
        return _minimal(recipe, base, values, cut)


def _parse(text: str, like: object) -> object:
    """The value whose `str` is `text`; a text where `like`, another value of the field, is one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return text if isinstance(like, str) and value is not None else value


def _yaml_word(value: object) -> str:
    """`value` in YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _minimal(recipe: str, base: Values, wanted: Values, cut: list[str]) -> Reproduction:
    """The fewest overrides that give what is wanted, or as much of it as can be given."""
    differing = [field for field, value in wanted.items() if field not in base or base[field] != value]
    overrides = _grouped(differing, wanted, base)
    notes = _mismatches(recipe, overrides, wanted, cut)
    if not notes:
        for field in list(overrides):  # what follows from another: a licence that goes with its images
            fewer = {name: value for name, value in overrides.items() if name != field}
            if not _mismatches(recipe, fewer, wanted, cut):
                overrides = fewer
    unsure = f"MLflow holds its first {MAX_PARAM} characters alone, and the run logged no recipe.yaml"
    return Reproduction(recipe, overrides, [*notes, *(f"{field}: {unsure}" for field in cut)])


def _grouped(fields: list[str], values: Values, base: Values) -> dict[str, object]:
    """Overrides as load_config takes them: parts of a value, such as a licence's, as one mapping.

    Fields that this version does not know are left out.
    """
    known = {".".join(field.split(".")[:2]) for field in base}
    overrides: dict[str, object] = {}
    for field in fields:
        whole = ".".join(field.split(".")[:2])
        if whole in known:
            parts = {k.removeprefix(f"{whole}."): v for k, v in values.items() if k.startswith(f"{whole}.")}
            overrides[whole] = values[field] if field == whole else parts
    return overrides


def _mismatches(recipe: str, overrides: Values, wanted: Values, cut: list[str]) -> list[str]:
    """A line for every field in which the configuration differs from the run's, but the `cut` ones."""
    try:
        ours = flatten(load_config(recipe, overrides).results())
    except InputError as error:
        return [f"this version refuses the run's recipe: {error}"]
    lines = []
    for field in sorted({*ours, *wanted} - {*cut}):
        if field not in wanted:
            lines.append(f"{field}: unknown to the run's version; {ours[field]} is taken")
        elif field not in ours:
            lines.append(f"{field}: unknown to this version; the run had {wanted[field]}")
        elif str(ours[field]) != str(wanted[field]):
            lines.append(f"{field}: the command gives {ours[field]}, the run had {wanted[field]}")
    more = len(lines) - MOST_NOTES
    return lines[:MOST_NOTES] + ([f"{more} more fields differ"] if more > 0 else [])


@contextmanager
def _without_environment() -> Iterator[None]:
    """IMS3_ variables fill in what a recipe leaves open: here the command is to say all of it."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("IMS3_")}
    try:
        yield
    finally:
        os.environ.update(taken)
