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
NAMED_ROWS = resources.files("ims3_ray.jobs.sweep") / "rows"


@dataclass(frozen=True)
class Row:
    """A row of a comparison: overrides of the recipe, or the name of a set of real images."""

    name: str
    overrides: Mapping[str, object] = field(default_factory=dict)
    real: str | None = None
    note: str = ""


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
                raise InputError(f"rows: the name {row.name!r} is a yardstick's; name the row differently")
            if row.real is not None and row.real not in get_args(Baseline):
                kinds = ", ".join(get_args(Baseline))
                raise InputError(f"rows: {row.name!r}: real={row.real!r} is unknown; choose one of {kinds}")
            if row.real is not None and row.overrides:
                raise InputError(f"rows: {row.name!r}: real images have no overrides; drop them or real")
        if self.baseline not in names:
            raise InputError(f"rows: baseline {self.baseline!r} is no row; choose one of {', '.join(names)}")
        if not self.generated:
            raise InputError("rows: all are real images; add a generated row, such as {name: DiT}")

    @property
    def generated(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows if row.real is None}

    @property
    def host(self) -> str:
        """The first generated row: its trials also score the real images."""
        return next(iter(self.generated))

    @property
    def real(self) -> list[str]:
        return sorted({row.real for row in self.rows if row.real})


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
    if not isinstance(row, Mapping) or not {"name"} <= set(row) <= {"name", "note", "overrides", "real"}:
        raise InputError(f"--rows: {row!r} in {file} is no row; give a name and note, overrides, real")
    name, overrides = str(row["name"]), row.get("overrides", {})
    if not isinstance(overrides, Mapping):
        raise InputError(f"--rows: overrides of {name!r} must be fields and values, such as {{im.weight: 0}}")
    if common := [key for key in overrides if str(key).split(".")[0] in COMMON_FIELDS]:
        raise InputError(
            f"--rows: {name!r} sets {common[0]}, which holds for all rows; give it on the command line"
        )
    return Row(name, overrides, row.get("real"), row.get("note", ""))
