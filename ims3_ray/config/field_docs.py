"""Documentation of the fields, for `--help` and docs/make_configuration.py."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .base import Settings
from .load import yaml_word
from .pretrain import Pretrain
from .settings import Config, Evaluating, Selecting

SETTINGS: dict[str, type[Settings]] = {  # command → its settings; convert has none
    **dict.fromkeys(("distill", "sweep", "runs", "init", "push", "doctor"), Config),
    **dict.fromkeys(("evaluate", "verify"), Evaluating),
    "select": Selecting,
    "pretrain": Pretrain,
}
STORAGE_ONLY = ("runs", "init", "push", "doctor")  # commands that take `storage` and no other field
KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))

Schema = Mapping[str, Any]  # JSON schema by pydantic


class Row(NamedTuple):
    field: str
    kind: str  # type with its range or choices
    default: str  # YAML
    description: str


class Group(NamedTuple):
    """A section's fields, or those outside sections (name "")."""

    name: str
    description: str
    rows: list[Row]


def groups(settings: type[Settings]) -> list[Group]:
    """Returns the fields by section."""
    schema = settings.model_json_schema()
    top_level, sections = Group("", "", []), list[Group]()
    for row in _rows(schema, schema["$defs"], {}, ""):
        name, dot, _ = row.field.partition(".")
        if not dot:
            top_level.rows.append(row)
        elif sections and sections[-1].name == name:
            sections[-1].rows.append(row)
        else:
            model = schema["$defs"][_model(schema["properties"][name])]
            sections.append(Group(name, model.get("description", "").partition("\n")[0], [row]))
    return [top_level, *sections]


def _rows(
    schema: Schema, models: Mapping[str, Schema], values: Mapping[str, object], prefix: str, outer: str = ""
) -> Iterator[Row]:
    """The rows of a model and its inner models. `values` replace its fields' defaults."""
    for name, spec in schema["properties"].items():
        value, model = values.get(name, spec.get("default", "–")), _model(spec)
        description = " ".join(filter(None, (outer, spec.get("description"))))
        if model is None or "anyOf" in spec:
            yield Row(prefix + name, _kind(spec), yaml_word(value), description)
        if model is not None:
            inner = value if isinstance(value, dict) else {}
            of_field = "" if "anyOf" in spec else description
            yield from _rows(models[model], models, inner, f"{prefix}{name}.", of_field)


def _model(spec: Schema) -> str | None:
    names = [choice["$ref"] for choice in spec.get("anyOf", [spec]) if "$ref" in choice]
    return names[0].rpartition("/")[2] if names else None


def _kind(spec: Schema) -> str:
    if "anyOf" in spec:
        return " or ".join(map(_kind, spec["anyOf"]))
    if choices := spec.get("enum"):
        return f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
    if spec.get("type") == "array":
        return f"list of {_kind(spec['items'])}"
    if spec.get("type") == "null":
        return "null"
    bounds = ", ".join(f"{sign} {spec[key]}" for key, sign in BOUNDS if key in spec)
    kind = spec.get("const") or KINDS.get(spec.get("type", ""), "fields")
    return f"{kind} {bounds}".strip()


def fields(command: str) -> list[str]:
    """Returns the field names of a command."""
    if command in STORAGE_ONLY:
        return ["storage"]
    return (
        [row.field for group in groups(SETTINGS[command]) for row in group.rows]
        if command in SETTINGS
        else []
    )


def help_text(command: str) -> str | None:
    """Returns the end of a command's `--help`, its fields; None if it has none."""
    if command not in SETTINGS:
        return None
    width = max(60, min(shutil.get_terminal_size((80, 24)).columns, 110))

    def wrapped(text: str, first: str, others: str) -> list[str]:
        return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others)

    lines = ["fields, as field=value, with their defaults; a recipe may set other values:"]
    names = fields(command)
    for group in groups(SETTINGS[command]):
        rows = [row for row in group.rows if row.field in names]
        if rows:
            lines += ["", *wrapped(f"{group.name}: {group.description}" if group.name else "", "", "  ")]
        for row in rows:
            lines += wrapped(f"{row.field}={row.default}   {row.kind}", "  ", " " * 8)
            lines += wrapped(row.description, " " * 6, " " * 6)
    return "\n".join(lines)
