"""The command that reproduces a run: its recipe and the overrides that differ, ready for a shell."""

import copy
import os
import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from ims3_ray.errors import InputError

from .load import REMOVED, RENAMED, load_config, override_words, recipe_names

BASE_RECIPE = "digits"  # for runs of a recipe file
MAX_NOTES = 5
NO_RESULT = ("storage", "workers")  # change only place and speed
FLATTENED = (  # (section, field, its former subfield that is its value now)
    ("im", "minimax", "extreme"),
    ("model", "compile", "cuda"),
    ("model", "cuda_graphs", "cuda"),
)

Values = Mapping[str, object]


@dataclass(frozen=True)
class Reproduction:
    """A recipe and overrides. `notes` has a line per field that the command cannot reproduce."""

    recipe: str
    overrides: dict[str, object]
    notes: list[str]

    @property
    def words(self) -> list[str]:
        return ["ims3", "distill", "--recipe", self.recipe, *override_words(self.overrides)]

    @property
    def command(self) -> str:
        return shlex.join(self.words)


def reproduce(recipe_file: bytes, storage: str | None = None) -> Reproduction:
    """Returns the command, with as few overrides as possible, for a run with this recipe.yaml.

    If this version cannot reproduce all fields, `notes` lists them and the command has the others.
    """
    logged = upgraded(yaml.safe_load(recipe_file))
    wanted = _fields({name: value for name, value in logged.items() if name not in NO_RESULT})
    recipe = logged["recipe"] if logged["recipe"] in recipe_names() else BASE_RECIPE
    with _without_environment():
        base = _fields(load_config(recipe).results())
        overrides = {f: value for f, value in wanted.items() if f in base and base[f] != value}
        notes = _mismatches(recipe, overrides, wanted)
        for field in (
            list(overrides) if not notes else ()
        ):  # some follow from others, as a licence from images
            fewer = {name: value for name, value in overrides.items() if name != field}
            if not _mismatches(recipe, fewer, wanted):
                overrides = fewer
    return Reproduction(recipe, overrides | ({"storage": storage} if storage else {}), notes)


def upgraded(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored recipe with today's field names. Removed fields stay if their value differs."""
    recipe = copy.deepcopy(dict(recipe))
    sections = {name: section for name, section in recipe.items() if isinstance(section, dict)}
    for old, new in RENAMED.items():
        section, _, field = old.partition(".")
        if field in sections.get(section, {}):
            to, _, name = new.rpartition(".")
            (sections[to] if to else recipe)[name] = sections[section].pop(field)
    for old, value in REMOVED.items():
        section, _, field = old.rpartition(".")
        if sections.get(section, {}).get(field, ...) == value:
            del sections[section][field]
    for section, field, part in FLATTENED:
        if isinstance(value := sections.get(section, {}).get(field), dict):
            sections[section][field] = value.get(part)
    return recipe


def _fields(results: Values) -> dict[str, object]:
    """Dotted field, at most one dot, → value."""
    sections = {name: section for name, section in results.items() if isinstance(section, Mapping)}
    inner = {
        f"{name}.{field}": value for name, section in sections.items() for field, value in section.items()
    }
    return {name: value for name, value in results.items() if name not in sections} | inner


def _mismatches(recipe: str, overrides: Values, wanted: Values) -> list[str]:
    """A line per field whose value differs from the run's."""
    try:
        ours = _fields(load_config(recipe, overrides).results())
    except InputError as error:
        return [f"this version refuses the run's recipe: {error}"]
    lines = []
    for field in sorted({*ours, *wanted}):
        if field not in wanted:
            lines.append(f"{field}: unknown to the run's version; the command uses {ours[field]}")
        elif field not in ours:
            lines.append(f"{field}: unknown to this version; the run had {wanted[field]}")
        elif ours[field] != wanted[field]:
            lines.append(f"{field}: the command uses {ours[field]}, the run had {wanted[field]}")
    more = len(lines) - MAX_NOTES
    return lines[:MAX_NOTES] + ([f"{more} more fields differ"] if more > 0 else [])


@contextmanager
def _without_environment() -> Generator[None]:
    """IMS3_ variables set fields that the command must set itself."""
    removed = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("IMS3_")}
    try:
        yield
    finally:
        os.environ.update(removed)
