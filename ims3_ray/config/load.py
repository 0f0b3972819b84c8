"""A configuration out of a recipe, a person's overrides and the environment; every mistake is named with its
field.
"""

import copy
import difflib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ims3_ray.errors import InputError

from .pretrain import Pretrain
from .settings import Config, Evaluating, Selecting

Settings = TypeVar("Settings", Config, Evaluating, Pretrain, Selecting)
LICENSED = {"model": ("path", "vae"), "data": ("train", "class_map")}  # what a section's licence speaks of


def recipe_names() -> list[str]:
    return sorted(
        p.name.removesuffix(".yaml")
        for p in resources.files("ims3_ray.recipes").iterdir()
        if p.name.endswith(".yaml")
    )


def recipe_text(recipe: str) -> tuple[str, str]:
    """(name, YAML text) of a recipe given by name or by path."""
    if recipe in recipe_names():
        return recipe, (resources.files("ims3_ray.recipes") / f"{recipe}.yaml").read_text()
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path.stem, path.read_text()
    raise InputError(
        f"recipe: {recipe!r} is neither a known recipe ({', '.join(recipe_names())}) nor a YAML file"
    )


def load_config(recipe: str = "digits", overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of `recipe` (name or path) with dotted `overrides`; InputError names every field at
    fault.
    """
    name, text = recipe_text(recipe)
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"recipe {recipe}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(
            f"recipe {recipe}: holds a {type(values).__name__}; give a mapping of sections to fields"
        )
    values.setdefault("recipe", name)
    return _build(Config, values, overrides or {})


def load_pretrain(overrides: Mapping[str, Any] | None = None) -> Pretrain:
    """The configuration of a pretraining: the bundled digits' with `overrides`."""
    return _build(Pretrain, {}, overrides or {})


def load_selecting(overrides: Mapping[str, Any] | None = None) -> Selecting:
    """The configuration of a selection alone: the defaults with `overrides`."""
    return _build(Selecting, {}, overrides or {})


def load_evaluating(overrides: Mapping[str, Any] | None = None) -> Evaluating:
    """The configuration of an evaluation alone: the defaults with `overrides`."""
    return _build(Evaluating, {}, overrides or {})


def _build(kind: type[Settings], values: dict[str, Any], overrides: Mapping[str, Any]) -> Settings:
    recipe = copy.deepcopy(values)
    for field, value in overrides.items():
        _put(values, field, copy.deepcopy(value))
    _drop_licences(values, recipe, overrides)
    try:
        return kind(**values)
    except ValidationError as error:
        raise InputError("; ".join(_explain(e, kind) for e in error.errors())) from error


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """`["sample.subgroups=20"]` as `{"sample.subgroups": 20}`; values are read as YAML."""
    overrides = {}
    for word in words:
        field, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z_][a-z0-9_.]*", field):
            raise InputError(f"{word!r}: is no override; write field=value, such as sample.subgroups=20")
        try:
            overrides[field] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{field}: value {text!r} can't be read; quote it as YAML") from error
    return overrides


def _put(values: dict[str, Any], field: str, value: Any) -> None:
    *sections, last = field.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"{field}: {section} is a plain value and has no field {last}")
    if isinstance(value, Mapping) and isinstance(values.get(last), dict):
        for inner, inner_value in value.items():
            _put(values[last], inner, inner_value)
    else:
        values[last] = value


def _drop_licences(values: dict[str, Any], recipe: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Unset a recipe's licence where an override puts other weights or images in the place of those it speaks
    of.
    """
    for section, fields in LICENSED.items():
        said, now = recipe.get(section), values.get(section)
        if (
            not isinstance(said, dict)
            or not isinstance(now, dict)
            or _is_given(overrides, section, "licence")
        ):
            continue
        if "licence" in said and any(field in said and now.get(field) != said[field] for field in fields):
            now["licence"] = None


def _is_given(overrides: Mapping[str, Any], section: str, field: str) -> bool:
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
    return (
        message
        if not location or message.startswith(f"{location}.")
        else f"{location}: {message}, got {error['input']!r}"
    )


def require_field(field: str) -> None:
    """InputError, with the fields that there are, for what is no field of a recipe."""
    parts = tuple(field.split("."))
    for depth in range(1, len(parts) + 1):
        known = _fields_beside(parts[:depth], Config)
        if parts[depth - 1] not in known:
            raise InputError(_explain({"type": "extra_forbidden", "loc": parts[:depth]}, Config))


def accepts(recipe: str, overrides: Mapping[str, Any], field: str, value: Any) -> bool:
    """Whether the recipe with these overrides takes `value` for `field`, whatever other fields say to it."""
    try:
        load_config(recipe, {**overrides, field: value})
    except InputError as error:
        return not any(part.strip().startswith(f"{field}:") for part in str(error).split("; "))
    return True


def _fields_beside(location: tuple[Any, ...], model: Any) -> list[str]:
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        models = [
            a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
