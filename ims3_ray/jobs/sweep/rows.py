"""Rows of a comparison, read from the package's files or a user's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import get_args

from ims3_ray.config.evaluation import Baseline
from ims3_ray.config.load import read_text, read_yaml
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import YARDSTICKS

COMMON_FIELDS = ("evaluate", "ipc", "recipe", "seed", "storage", "workers")  # a row may not set them
ROW_FIELDS = {"name", "note", "overrides", "real", "packing"}
NAMED_ROWS = resources.files("ims3_ray.jobs.sweep") / "rows"


@dataclass(frozen=True)
class Row:
    """A row of a comparison: overrides of the recipe, or the name of a set of real images."""

    name: str
    overrides: Mapping[str, object] = field(default_factory=dict)
    real: str | None = None
    note: str = ""
    packing: int = 1  # packing.factor: a row of packed images of real ones is the control of such rows


@dataclass(frozen=True)
class Rows:
    """Rows and their baseline. Raises InputError for equal or unknown names."""

    rows: tuple[Row, ...]
    baseline: str  # differences are taken to this row

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise InputError(f"rows: {row.name!r} stands twice; name every row differently")
            if row.name in YARDSTICKS:
                raise InputError(
                    f"rows: the name {row.name!r} is that of a coverage row; name the row differently"
                )
            if row.real is not None and row.real not in get_args(Baseline):
                kinds = ", ".join(get_args(Baseline))
                raise InputError(f"rows: {row.name!r}: real={row.real!r} is unknown; choose one of {kinds}")
            if row.real is not None and row.overrides:
                raise InputError(f"rows: {row.name!r}: real images have no overrides; drop them or real")
        if self.baseline not in names:
            raise InputError(f"rows: baseline {self.baseline!r} is no row; choose one of {', '.join(names)}")
        if not self.generated:
            raise InputError("rows: all are real images; add a generated row, such as {name: DiT}")
        for row in self.rows:
            if self.host(row) is None:
                raise InputError(
                    f"rows: {row.name!r} has packing={row.packing}, but no generated row has "
                    f"packing.factor={row.packing}; add one"
                )

    @property
    def generated(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows if row.real is None}

    def host(self, row: Row) -> str | None:
        """The row whose trials score `row`: itself, or for real images the first one packed like them."""
        if row.real is None:
            return row.name
        return next((name for name, own in self.generated.items() if own.packing == row.packing), None)

    def scored_by(self, name: str) -> list[str]:
        """The sets of real images that the trials of a generated row score."""
        return sorted({row.real for row in self.rows if row.real and self.host(row) == name})


def named_rows() -> list[str]:
    """The rows files of the package."""
    return sorted(p.name.removesuffix(".yaml") for p in NAMED_ROWS.iterdir() if p.name.endswith(".yaml"))


def read_rows(name: str) -> Rows:
    """The rows of a name or a YAML file. Raises InputError for another content."""

    def refuse(why: str) -> InputError:
        return InputError(f"--rows: {name} {why}")

    if name in named_rows():
        text = (NAMED_ROWS / f"{name}.yaml").read_text()
    elif Path(name).suffix in {".yaml", ".yml"} and Path(name).is_file():
        text = read_text(Path(name), refuse)
    else:
        raise InputError(
            f"--rows: {name!r} is neither a known name ({', '.join(named_rows())}) nor a YAML file"
        )
    content = read_yaml(text, refuse)
    is_mapping = isinstance(content, Mapping) and set(content) == {"baseline", "rows"}
    if not is_mapping or not isinstance(content["rows"], list):
        raise refuse("must hold `baseline`, a row's name, and `rows`, a list; nothing else")
    return Rows(tuple(_read_row(row, name) for row in content["rows"]), str(content["baseline"]))


def _read_row(row: object, file: str) -> Row:
    if not isinstance(row, Mapping) or not {"name"} <= set(row) <= ROW_FIELDS:
        raise InputError(
            f"--rows: {row!r} in {file} is no row; give a name and note, overrides, real, packing"
        )
    name, overrides = str(row["name"]), row.get("overrides", {})
    if not isinstance(overrides, Mapping):
        raise InputError(f"--rows: overrides of {name!r} must be fields and values, such as {{im.weight: 0}}")
    if common := [key for key in overrides if str(key).split(".")[0] in COMMON_FIELDS]:
        raise InputError(
            f"--rows: {name!r} sets {common[0]}, which holds for all rows; give it on the command line"
        )
    if "packing" in (overrides if row.get("real") else {**overrides, **row}):
        raise InputError(f"--rows: {name!r} sets packing; write overrides: {{packing.factor: 2}}")
    factor = row.get("packing", 1) if row.get("real") else overrides.get("packing.factor", 1)
    if not isinstance(factor, int):
        raise InputError(f"--rows: {name!r} has packing {factor!r}; give 1, 2 or 3")
    return Row(name, overrides, row.get("real"), row.get("note", ""), factor)
