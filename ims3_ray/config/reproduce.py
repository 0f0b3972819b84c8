"""The command that reproduces a run: its recipe with the fields that differ, as a person would type them."""

import os
import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import yaml

from ims3_ray.errors import InputError

from .load import load_config, recipe_names

STANDIN = "digits"  # for a recipe file of one's own: all that differs from a named one says the same
MOST_NOTES = 5
PLACE_AND_SPEED = ("storage", "workers")  # change no result

Values = Mapping[str, object]


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


def reproduce(recipe_file: bytes, storage: str | None = None) -> Reproduction:
    """The command for a run that had this recipe.yaml: the fewest overrides that give it, in `storage`.

    Where this version can't give all of it, notes say so, and the command gives as much as can be given.
    """
    logged = yaml.safe_load(recipe_file)
    wanted = _fields({name: value for name, value in logged.items() if name not in PLACE_AND_SPEED})
    recipe = logged["recipe"] if logged["recipe"] in recipe_names() else STANDIN
    with _without_environment():
        base = _fields(load_config(recipe).results())
        overrides = {f: value for f, value in wanted.items() if f in base and base[f] != value}
        notes = _mismatches(recipe, overrides, wanted)
        for field in list(overrides) if not notes else ():  # what follows: a licence goes with its images
            fewer = {name: value for name, value in overrides.items() if name != field}
            if not _mismatches(recipe, fewer, wanted):
                overrides = fewer
    return Reproduction(recipe, overrides | ({"storage": storage} if storage else {}), notes)


def _fields(results: Values) -> dict[str, object]:
    """By field, as overrides are given: `sample.batch_size`, whatever it holds."""
    sections = {name: section for name, section in results.items() if isinstance(section, Mapping)}
    own = {f"{name}.{field}": value for name, section in sections.items() for field, value in section.items()}
    return {name: value for name, value in results.items() if name not in sections} | own


def _yaml_word(value: object) -> str:
    """`value` in YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _mismatches(recipe: str, overrides: Values, wanted: Values) -> list[str]:
    """A line for every field in which the configuration differs from the run's."""
    try:
        ours = _fields(load_config(recipe, overrides).results())
    except InputError as error:
        return [f"this version refuses the run's recipe: {error}"]
    lines = []
    for field in sorted({*ours, *wanted}):
        if field not in wanted:
            lines.append(f"{field}: unknown to the run's version; {ours[field]} is taken")
        elif field not in ours:
            lines.append(f"{field}: unknown to this version; the run had {wanted[field]}")
        elif ours[field] != wanted[field]:
            lines.append(f"{field}: the command gives {ours[field]}, the run had {wanted[field]}")
    more = len(lines) - MOST_NOTES
    return lines[:MOST_NOTES] + ([f"{more} more fields differ"] if more > 0 else [])


@contextmanager
def _without_environment() -> Generator[None]:
    """IMS3_ variables fill in what a recipe leaves open: here the command is to say all of it."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("IMS3_")}
    try:
        yield
    finally:
        os.environ.update(taken)
