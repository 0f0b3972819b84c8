"""A configuration out of a recipe, a person's overrides and the environment; mistakes are named by field."""

import copy
import difflib
import re
import reprlib
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError

from ims3_ray.errors import InputError

from .base import Settings
from .data import Data
from .settings import Config
from .yaml_io import read_text, read_yaml

Kind = TypeVar("Kind", bound=Settings)
Overrides = Mapping[str, object]  # dotted field → value
Values = dict[str, Any]  # as YAML holds them: sections are mappings
MOST_MISTAKES = 8  # that one line names
SHORT = reprlib.Repr()  # of values that people gave, which may be of any length
SHORT.maxstring = SHORT.maxother = 200
STATED_OF = {  # field of a section that a recipe states of other fields beside it → these
    ("model", "licence"): ("path", "vae"),
    ("model", "frequency_shift"): ("path",),
    ("data", "licence"): ("train", "class_map"),
}


def recipe_names() -> list[str]:
    names = (path.name for path in resources.files("ims3_ray.recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def recipe_text(recipe: str) -> tuple[str, str]:
    """(name, YAML text) of a recipe given by name or by path."""
    if recipe in recipe_names():
        return recipe, (resources.files("ims3_ray.recipes") / f"{recipe}.yaml").read_text()
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path.stem, read_text(path, partial(_bad_recipe, recipe))
    raise InputError(
        f"recipe: {recipe!r} is neither a known recipe ({', '.join(recipe_names())}) nor a YAML file"
    )


def _bad_recipe(recipe: str, why: str) -> InputError:
    return InputError(f"recipe {recipe}: {why}")


def load_config(recipe: str = "digits", overrides: Overrides | None = None) -> Config:
    """The run that `recipe` (name or path) and `overrides` say; InputError names every field at fault."""
    name, text = recipe_text(recipe)
    values = read_yaml(text, partial(_bad_recipe, recipe)) or {}
    if not isinstance(values, dict):
        raise InputError(
            f"recipe {recipe}: holds a {type(values).__name__}; give a mapping of sections to fields"
        )
    return load_settings(Config, overrides or {}, {"recipe": name} | values)


def subject(config: Config) -> str:
    """What a run is about: its recipe; where other images stand in place of a named recipe's own, these."""
    return subject_of(config.recipe, config.data)


def subject_of(recipe: str, data: Data) -> str:
    """The same of a recipe's name and its images."""
    named = load_config(recipe).data.train if recipe in recipe_names() else None
    return recipe if named in (None, data.train) else data.name


def load_settings(kind: type[Kind], overrides: Overrides, recipe: Values | None = None) -> Kind:
    """What a command is told: `overrides` over what a recipe says over the defaults."""
    values: Values = {}
    for section, fields in (recipe or {}).items():
        values[_name(section)] = copy.deepcopy(fields)
    for field, value in overrides.items():
        _put(values, field, copy.deepcopy(value))
    _drop_what_spoke_of_others(values, recipe or {}, overrides)
    try:
        settings = kind(**values)
    except ValidationError as error:
        mistakes = [_explain(dict(e), kind) for e in error.errors()]
        if more := len(mistakes) - MOST_MISTAKES:
            mistakes[MOST_MISTAKES:] = [f"and {more} more such mistakes"] if more > 0 else []
        raise InputError("; ".join(mistakes)) from error
    _refuse_no_text(settings.model_dump(), "")
    return settings


def _refuse_no_text(value: object, field: str) -> None:
    """InputError where there is text in it that no file can be called by."""
    if isinstance(value, str) and re.search(r"[\0\ud800-\udfff]", value):
        raise InputError(f"{field}: {SHORT.repr(value)} holds a character that no path can; leave it out")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for name, part in inner:
        _refuse_no_text(part, f"{field}.{name}" if field else str(name))


def parse_overrides(words: list[str]) -> dict[str, object]:
    """`["sample.subgroups=20"]` as `{"sample.subgroups": 20}`; values are read as YAML."""
    overrides: dict[str, object] = {}
    for word in words:
        field, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z_][a-z0-9_.]*", field):
            raise InputError(f"{word!r}: is no override; write field=value, such as sample.subgroups=20")
        overrides[field] = read_yaml(text, partial(_unreadable, field, text))
    return overrides


def _unreadable(field: str, text: str, why: str) -> InputError:
    return InputError(f"{field}: value {SHORT.repr(text)} {why}; quote it")


def _name(field: object) -> str:
    if not isinstance(field, str):
        raise InputError(f"{SHORT.repr(field)}: is no field; fields are called by words")
    return field


def _put(values: Values, field: str, value: object) -> None:
    *sections, last = _name(field).split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"{field}: {section} is a plain value and has no field {last}")
        values = cast(Values, inner)
    if isinstance(value, Mapping) and isinstance(values.get(last), dict):
        for inner_field, inner_value in value.items():
            _put(values[last], inner_field, inner_value)
    else:
        values[last] = value


def _drop_what_spoke_of_others(values: Values, recipe: Values, overrides: Overrides) -> None:
    """Unset what a recipe says of its own weights or images where an override puts others in their place."""
    for (section, said), fields in STATED_OF.items():
        stated, now = recipe.get(section), values.get(section)
        if not isinstance(stated, dict) or not isinstance(now, dict) or said not in stated:
            continue
        is_other = any(
            field in stated and _unpinned(now.get(field)) != _unpinned(stated[field]) for field in fields
        )
        if is_other and not _is_given(overrides, section, said):
            now[said] = None


def _unpinned(place: object) -> object:
    """A hub id without hf:// and its revision: what is said of a model holds for it at every commit."""
    plain = r"^(?:hf://)?([\w.-]+/[\w.-]+?)(?:@.*)?$"
    return re.sub(plain, r"\1", place) if isinstance(place, str) else place


def _is_given(overrides: Overrides, section: str, field: str) -> bool:
    inner = overrides.get(section)
    within = isinstance(inner, Mapping) and field in inner
    return within or any(f"{given}.".startswith(f"{section}.{field}.") for given in overrides)


def _explain(error: Mapping[str, Any], kind: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_beside(error["loc"], kind)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{location}: unknown field; {hint}known here: {', '.join(known)}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not location or message.startswith(f"{location}."):
        return message
    return f"{location}: {message}, got {SHORT.repr(error['input'])}"


def require_field(field: str) -> None:
    """InputError, with the fields that there are, for what is no field of a recipe."""
    parts = tuple(field.split("."))
    for depth in range(1, len(parts) + 1):
        if parts[depth - 1] not in _fields_beside(parts[:depth], Config):
            raise InputError(_explain({"type": "extra_forbidden", "loc": parts[:depth]}, Config))


def accepts(recipe: str, overrides: Overrides, field: str, value: object) -> bool:
    """Whether the recipe with these overrides takes `value` for `field`, whatever other fields say to it."""
    try:
        load_config(recipe, {**overrides, field: value})
    except InputError as error:
        return not any(part.strip().startswith(f"{field}:") for part in str(error).split("; "))
    return True


def _fields_beside(location: tuple[str | int, ...], model: type[BaseModel]) -> list[str]:
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        models = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
