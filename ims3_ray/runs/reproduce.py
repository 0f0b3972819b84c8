"""The command that reproduces a run: its recipe with the fields that differ, as a person would type them."""

import ast
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from ims3_ray.config.load import load_config, recipe_names
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError

from .tracking import MAX_PARAM, flatten

STANDIN = "digits"  # for a recipe file of one's own: all that differs from a named one says the same
MOST_NOTES = 5
PLACE_AND_SPEED = ("storage", "workers")  # change no result


@dataclass(frozen=True)
class Reproduction:
    """`notes` say, a line each, where the command does not give what the run had."""

    recipe: str
    overrides: dict[str, Any]
    notes: list[str]

    @property
    def words(self) -> list[str]:
        return [
            "--recipe",
            self.recipe,
            *(f"{field}={yaml_word(value)}" for field, value in self.overrides.items()),
        ]

    @property
    def command(self) -> str:
        return "python jobs/distill.py " + " ".join(shlex.quote(word) for word in self.words)


def reproduce(params: Mapping[str, str], resolved: Callable[[], bytes | None]) -> Reproduction:
    """The command for a run with these MLflow parameters; `resolved` fetches its recipe.yaml where they do
    not suffice.

    InputError for a run whose parameters are no recipe's.
    """
    if "recipe" not in params or "sample.subgroups" not in params:
        raise InputError(
            "--reproduce: this run's parameters are no recipe; name a distillation or a trial of a sweep"
        )
    recipe = params["recipe"] if params["recipe"] in recipe_names() else STANDIN
    with _without_environment():
        base = flatten(load_config(recipe).results())
        cut = [field for field, text in params.items() if len(text) >= MAX_PARAM]
        of_params = {
            field: parsed(text, base.get(field)) for field, text in params.items() if field not in cut
        }
        of_params |= {field: base[field] for field in cut if _shown(base.get(field)) == params[field]}
        made = _minimal(recipe, base, of_params, params)
        if (cut or made.notes) and (text := resolved()):
            exact = flatten(
                {name: value for name, value in yaml.safe_load(text).items() if name not in PLACE_AND_SPEED}
            )
            return _minimal(recipe, base, exact, params, exact)
    unsure = [
        f"{field}: MLflow holds its first {MAX_PARAM} characters alone, and the run logged no recipe.yaml"
        for field in cut
    ]
    return Reproduction(recipe, made.overrides, [*made.notes, *unsure])


def parsed(text: str, like: Any) -> Any:
    """The value whose `str` is `text`; `like` is another value of the field: where it is a text, so is this
    one.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return text if isinstance(like, str) and value is not None else value


def yaml_word(value: Any) -> str:
    """`value` in YAML on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
        .removesuffix("...\n")
        .strip()
    )


def _minimal(
    recipe: str,
    base: dict[str, Any],
    wanted: dict[str, Any],
    params: Mapping[str, str],
    exact: dict[str, Any] | None = None,
) -> Reproduction:
    """The fewest overrides that give what `params` show, and `exact` where it is known, or the most that can
    be given.
    """
    differing = {field: value for field, value in wanted.items() if field not in base or base[field] != value}
    overrides = _grouped(differing, wanted)
    notes = _mismatches(recipe, overrides, params, exact)
    if not notes:
        for field in list(overrides):  # what follows from another: a licence that goes with its images
            fewer = {name: value for name, value in overrides.items() if name != field}
            if not _mismatches(recipe, fewer, params, exact):
                overrides = fewer
    return Reproduction(recipe, overrides, notes)


def _grouped(overrides: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Overrides as load_config takes them: parts of a value, such as a licence or a batch size, as one
    mapping.

    Fields that this version does not know are left out.
    """
    known = {".".join(field.split(".")[:2]) for field in flatten(Config().results())}
    found: dict[str, Any] = {}
    for field, value in overrides.items():
        whole = ".".join(field.split(".")[:2])
        if whole not in known:
            continue
        parts = {
            other.removeprefix(f"{whole}."): v for other, v in wanted.items() if other.startswith(f"{whole}.")
        }
        found[whole] = value if field == whole else parts
    return found


def _mismatches(
    recipe: str, overrides: Mapping[str, Any], params: Mapping[str, str], exact: Mapping[str, Any] | None
) -> list[str]:
    """A line for every field in which the configuration differs from the run's."""
    try:
        made = flatten(load_config(recipe, overrides).results())
    except InputError as error:
        return [f"this version refuses the run's recipe: {error}"]
    lines = []
    for field in sorted({*made, *params, *(exact or {})}):
        if field not in params:
            lines.append(f"{field}: unknown to the run's version; {_shown(made[field])} is taken")
        elif field not in made:
            lines.append(f"{field}: unknown to this version; the run had {params[field]}")
        elif _shown(made[field]) != params[field] or (exact is not None and exact.get(field) != made[field]):
            lines.append(f"{field}: the command gives {_shown(made[field])}, the run had {params[field]}")
    more = len(lines) - MOST_NOTES
    return lines[:MOST_NOTES] + ([f"{more} more fields differ"] if more > 0 else [])


def _shown(value: Any) -> str:
    return str(value)[:MAX_PARAM]


@contextmanager
def _without_environment() -> Iterator[None]:
    """IMS3_ variables fill in what a recipe leaves open: here all that differs from the recipe itself is to
    be said.
    """
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("IMS3_")}
    try:
        yield
    finally:
        os.environ.update(taken)
