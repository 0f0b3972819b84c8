"""Every field of every command in words: what `--help` lists, and docs/configuration.md.

python -m ims3_ray.config.field_docs > docs/configuration.md
"""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from .base import Settings
from .pretrain import Pretrain
from .settings import Config, Evaluating, Selecting

JOBS: dict[str, type[Settings]] = {  # completion, convert and recipes take none
    **dict.fromkeys(("distill", "ablate", "sweep", "runs", "init", "push", "doctor"), Config),
    **dict.fromkeys(("evaluate", "verify"), Evaluating),
    "select": Selecting,
    "pretrain": Pretrain,
}
# of the fields that its settings have
ONLY: dict[str, tuple[str, ...]] = dict.fromkeys(("runs", "init", "push", "doctor"), ("storage",))
KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
NAMES = ("field", "type", "default", "")
INTRO = """# Configuration

Fields are given as words, `sample.subgroups=20`, or in a recipe's YAML, sections as mappings. Strongest
first: words, the recipe, environment variables (`IMS3_STORAGE`, `IMS3_WORKERS__ACTORS`; for pretrain
`IMS3_PRETRAIN_…`), the defaults below. `python jobs/distill.py --dry-run` shows what a run resolves to.
Everything but `workers` and `storage` goes into the fingerprints of what is made. `completion`, `convert` and
`recipes` take no fields, `runs`, `init`, `push` and `doctor` take `storage` alone.
"""

Schema = Mapping[str, Any]  # JSON, as pydantic writes it


class Row(NamedTuple):
    field: str
    kind: str  # type, with range or choices
    default: str  # as YAML
    sentence: str


class Part(NamedTuple):
    """A section, or the fields outside of any ("")."""

    name: str
    sentence: str
    rows: list[Row]


def parts(settings: type[Settings]) -> list[Part]:
    """The fields of a command, by section."""
    schema = settings.model_json_schema()
    outside, sections = Part("", "", []), list[Part]()
    for row in _rows(schema, schema["$defs"], {}, ""):
        name, dot, _ = row.field.partition(".")
        if not dot:
            outside.rows.append(row)
        elif sections and sections[-1].name == name:
            sections[-1].rows.append(row)
        else:
            model = schema["$defs"][_model(schema["properties"][name])]
            sections.append(Part(name, model.get("description", "").partition("\n")[0], [row]))
    return [outside, *sections]


def _rows(
    schema: Schema, models: Mapping[str, Schema], values: Mapping[str, object], prefix: str, of: str = ""
) -> Iterator[Row]:
    """The fields of a model and of those within it; `values` are its own in place of their defaults."""
    for name, spec in schema["properties"].items():
        value, model = values.get(name, spec.get("default", "–")), _model(spec)
        sentence = " ".join(filter(None, (of, spec.get("description"))))
        if model is None or "anyOf" in spec:
            yield Row(prefix + name, _kind(spec), _shown(value), sentence)
        if model is not None:
            inner, of_inner = value if isinstance(value, dict) else {}, "" if "anyOf" in spec else sentence
            yield from _rows(models[model], models, inner, f"{prefix}{name}.", of_inner)


def _model(spec: Schema) -> str | None:
    """The name of the model that the field holds."""
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
    return f"{KINDS.get(spec.get('type', ''), 'fields')} {bounds}".strip()


def _shown(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()


def fields(job: str) -> list[str]:
    """The names of a command's fields."""
    rows = [row.field for part in parts(JOBS[job]) for row in part.rows] if job in JOBS else []
    return [field for field in rows if field in ONLY.get(job, (field,))]


def help_text(job: str) -> str | None:
    """The fields of a command for the end of its `--help`; None where it takes none."""
    if job not in JOBS:
        return None
    width = max(60, min(shutil.get_terminal_size((80, 24)).columns, 110))

    def wrapped(text: str, first: str, others: str) -> list[str]:
        return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others)

    lines = ["fields, given as field=value; a recipe may have other values than these:"]
    for part in parts(JOBS[job]):
        rows = [row for row in part.rows if row.field in ONLY.get(job, (row.field,))]
        if rows:
            lines += ["", *wrapped(f"{part.name}: {part.sentence}" if part.name else "", "", "  ")]
        for row in rows:
            lines += wrapped(f"{row.field}={row.default}   {row.kind}", "  ", " " * 8)
            lines += wrapped(row.sentence, " " * 6, " " * 6)
    return "\n".join(lines)


def page() -> str:
    """docs/configuration.md. What a command has in common with a run is stated there alone."""
    lines, known = [INTRO], list[Part]()
    for settings in dict.fromkeys(JOBS.values()):
        jobs = [job for job, theirs in JOBS.items() if theirs is settings and job not in ONLY]
        lines += [f"## {', '.join(jobs)}", "", (settings.__doc__ or "").partition("\n")[0], ""]
        given = parts(settings)
        if shared := [f"`{part.name}`" for part in given if part in known]:
            lines += [f"As above: {', '.join(shared)}.", ""]
        for part in given:
            if part not in known:
                lines += [f"### {part.name}", "", part.sentence, ""] if part.name else []
                table = [NAMES, ("---",) * len(NAMES)]
                table += [(f"`{row.field}`", row.kind, f"`{row.default}`", row.sentence) for row in part.rows]
                lines += [*(f"| {' | '.join(cells)} |" for cells in table), ""]
        known += given
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
