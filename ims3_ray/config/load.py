"""Build a configuration from a recipe, overrides and the environment. Errors name the field."""

import copy
import difflib
import re
import reprlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from ims3_ray.errors import InputError

from .base import Settings, fields_beside, split_file
from .settings import Config

Kind = TypeVar("Kind", bound=Settings)
Overrides = Mapping[str, object]  # dotted field → value
Values = dict[str, Any]  # as in YAML: sections are mappings
Refuse = Callable[[str], Exception]  # reason → exception
RECIPES = resources.files("ims3_ray") / "recipes"
MERGE_TAG = "tag:yaml.org,2002:merge"  # `<<`, which may repeat
MAX_MISTAKES = 8  # listed in one error line
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 200
# (section, field) → fields of the section that it describes; dropped if an override changes one of them
DESCRIBES = {
    ("model", "licence"): ("path", "vae"),
    ("model", "frequency_shift"): ("path",),
    ("data", "licence"): ("train", "class_map"),
    ("data", "validation"): ("train",),
    ("data", "test"): ("train",),
}
RENAMED = {
    "evaluate.draws": "evaluate.random_subsets",
    "invert.points": "invert.steps",
    "model.graphs": "model.cuda_graphs",
    "packing.image_size": "image_size",
    "probe.points": "probe.checkpoint_steps",
    "select.certify": "select.lower_bound",
    "select.memory": "select.memory_gb",
}
REMOVED = {  # field → the value that every run has now
    "extractor.lr": 0.001,
    "finetune.weight_decay": 0.0,
    "im.metric": "cosine",
    "invert.substeps": 1,
    "log_every": 100,
    "refine.anchor_weight": 0.0,
    "refine.stay": 0.0,
    "sample.anchor_images": None,
    "sample.anchor_interval": [500, 999],
    "sample.anchor_strength": 0.1,
    "sample.guidance": "none",
    "sample.start_from": "medoids",
    "sample.start_noise": None,
    "sample.weights": "ema",
    "select.coverage_by": "distance",
    "select.coverage_neighbours": 5,
    "transformer.ema_decay": 0.999,
    "transformer.label_dropout": 0.1,
    "vae.lr": 0.001,
}


class _Loader(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if node.id == "mapping":  # else SafeLoader raises
            seen = set[tuple[str, str]]()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE_TAG:
                    continue
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_text(path: Path, refuse: Refuse) -> str:
    """Returns the text of a UTF-8 file. Raises `refuse(reason)` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise refuse(f"is no text in UTF-8 ({error})") from error
    except OSError as error:
        raise refuse(f"can't be read ({error.strerror or error})") from error


def read_yaml(text: str, refuse: Refuse) -> Any:
    """Returns the data of a YAML text. Raises `refuse(reason)` if it is invalid or a key occurs twice."""
    try:
        return _Loader(text).get_single_data()
    except RecursionError as error:
        raise refuse("is nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # from dates and numbers
        raise refuse(f"is not valid YAML: {' '.join(str(error).split())[:200]}") from error


def recipe_names() -> list[str]:
    return sorted(p.name.removesuffix(".yaml") for p in RECIPES.iterdir() if p.name.endswith(".yaml"))


def recipe_text(recipe: str) -> tuple[str, str]:
    """Returns (name, YAML text) of a recipe, given its name, path or URI."""
    if recipe in recipe_names():
        return recipe, (RECIPES / f"{recipe}.yaml").read_text()
    path, (place, name) = Path(recipe), split_file(recipe)
    if name.endswith(".yaml") and "://" in recipe:
        from ims3_ray.storage.directory import open_directory  # slow to import

        if (folder := open_directory(place)).exists(name):
            return Path(name).stem, folder.read(name).decode()
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path.stem, read_text(path, partial(_bad_recipe, recipe))
    raise InputError(
        f"recipe: {recipe!r} is neither a known recipe ({', '.join(recipe_names())}) nor a YAML file"
    )


def _bad_recipe(recipe: str, reason: str) -> InputError:
    return InputError(f"recipe {recipe}: {reason}")


def load_config(recipe: str = "digits", overrides: Overrides | None = None) -> Config:
    """Returns the configuration of `recipe` (name, path or URI). Raises InputError for every wrong field."""
    return load_settings(Config, overrides or {}, _recipe_values(recipe))


def _recipe_values(recipe: str) -> Values:
    """Returns the fields of a recipe. If it names a `base`, they replace those of that recipe."""
    name, text = recipe_text(recipe)
    values = read_yaml(text, partial(_bad_recipe, recipe)) or {}
    if not isinstance(values, dict):
        raise _bad_recipe(recipe, f"is a {type(values).__name__}; give a mapping of sections to fields")
    base = values.pop("base", None)
    if base is None:
        return {"recipe": name} | values
    if base not in recipe_names():
        raise _bad_recipe(recipe, f"base: {base!r} is no named recipe ({', '.join(recipe_names())})")
    return _merge(_recipe_values(base), {"recipe": name} | values)


def _merge(recipe: Values, overrides: Overrides) -> Values:
    """Returns the fields of `recipe`, replaced by `overrides`."""
    values: Values = {}
    for section, fields in recipe.items():
        values[_check_text(section)] = copy.deepcopy(fields)
    for field, value in overrides.items():
        _put(values, field, copy.deepcopy(value))
    _drop_descriptions(values, recipe, overrides)
    return values


def subject(config: Config) -> str:
    """Returns the recipe's name, or the images' name if other images replace a named recipe's."""
    train = load_config(config.recipe).data.train if config.recipe in recipe_names() else None
    return config.recipe if train in (None, config.data.train) else config.data.name


def load_settings(kind: type[Kind], overrides: Overrides, recipe: Values | None = None) -> Kind:
    """Returns the settings of a command. `overrides` precede `recipe`, which precedes the defaults."""
    try:
        settings = kind(**_merge(recipe or {}, overrides))
    except SettingsError as error:
        raise InputError(f"IMS3_…: {error}; give an environment variable's list or table as JSON") from error
    except ValidationError as error:
        mistakes = [_explain(dict(e), kind) for e in error.errors()]
        if (more := len(mistakes) - MAX_MISTAKES) > 0:
            mistakes[MAX_MISTAKES:] = [f"and {more} more such mistakes"]
        raise InputError("; ".join(mistakes)) from error
    _check_characters(settings.model_dump(), "")
    return settings


def _check_characters(value: object, field: str) -> None:
    """Raises InputError if a text has a character that no path can have."""
    if isinstance(value, str) and re.search(r"[\0\ud800-\udfff]", value):
        raise InputError(f"{field}: {SHORT.repr(value)} has a character that no path can have; remove it")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for name, part in inner:
        _check_characters(part, f"{field}.{name}" if field else str(name))


def parse_overrides(words: list[str]) -> dict[str, object]:
    """`["sample.subgroups=20"]` as `{"sample.subgroups": 20}`. Values are YAML."""
    overrides: dict[str, object] = {}
    for word in words:
        field, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z_][a-z0-9_.]*", field):
            raise InputError(f"{word!r}: is no override; write field=value, such as sample.subgroups=20")
        overrides[field] = read_yaml(text, partial(_bad_value, field, text))
    return overrides


def yaml_word(value: object) -> str:
    """Returns the YAML of `value` on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def override_words(overrides: Overrides) -> list[str]:
    """`{"sample.subgroups": 20}` as `["sample.subgroups=20"]`, which `parse_overrides` reads."""
    return [f"{field}={yaml_word(value)}" for field, value in overrides.items()]


def storage_override(words: list[str]) -> dict[str, object]:
    """Parse the overrides of a command that takes only `storage`."""
    overrides = parse_overrides(words)
    if unknown := set(overrides) - {"storage"}:
        raise InputError(f"{min(unknown)}: is no field of this command; only storage=DIR is")
    return overrides


def _bad_value(field: str, text: str, reason: str) -> InputError:
    return InputError(f"{field}: value {SHORT.repr(text)} {reason}; quote it")


def _check_text(field: object) -> str:
    if not isinstance(field, str):
        raise InputError(f"{SHORT.repr(field)}: is no field; a field's name is text")
    return field


def _put(values: Values, field: str, value: object) -> None:
    *sections, last = _check_text(field).split(".")
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


def _drop_descriptions(values: Values, recipe: Values, overrides: Overrides) -> None:
    """Unset what a recipe says about its own weights or images if an override replaces these."""
    for (section, description), fields in DESCRIBES.items():
        before, after = recipe.get(section), values.get(section)
        if not isinstance(before, dict) or not isinstance(after, dict) or description not in before:
            continue
        is_other = any(f in before and unpinned(after.get(f)) != unpinned(before[f]) for f in fields)
        if is_other and not _is_override(overrides, section, description):
            after[description] = None


def unpinned(location: object) -> object:
    """A hub id without hf:// and revision: a description holds for every commit."""
    plain = r"^(?:hf://)?([\w.-]+/[\w.-]+?)(?:@.*)?$"
    return re.sub(plain, r"\1", location) if isinstance(location, str) else location


def _is_override(overrides: Overrides, section: str, field: str) -> bool:
    inner = overrides.get(section)
    within = isinstance(inner, Mapping) and field in inner
    return within or any(f"{name}.".startswith(f"{section}.{field}.") for name in overrides)


def _explain(error: Mapping[str, Any], kind: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        if location in RENAMED:
            return f"{location}: is now called {RENAMED[location]}"
        fields = fields_beside(error["loc"], kind)
        if location in REMOVED:
            return f"{location}: was removed, its value is always {REMOVED[location]}; drop it"
        near = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{location}: unknown field; {hint}known here: {', '.join(fields)}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not location or message.startswith(f"{location}."):
        return message
    return f"{location}: {message}, got {SHORT.repr(error['input'])}"


def check_field(field: str) -> None:
    """Raises InputError, with the valid fields, if `field` is no field of a recipe."""
    parts = tuple(field.split("."))
    for depth in range(1, len(parts) + 1):
        if parts[depth - 1] not in fields_beside(parts[:depth], Config):
            raise InputError(_explain({"type": "extra_forbidden", "loc": parts[:depth]}, Config))
