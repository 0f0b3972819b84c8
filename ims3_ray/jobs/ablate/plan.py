"""What an ablation runs: its rows, and the configuration of every cell."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import get_args

from ims3_ray.config.evaluation import Baseline
from ims3_ray.config.load import load_config, read_text, read_yaml
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import YARDSTICKS

SHARED = ("evaluate", "ipc", "recipe", "seed", "storage", "workers")  # else rows would not compare

NAMED = resources.files("ims3_ray.jobs.ablate") / "rows"
Cell = tuple[str, int, int]  # name of a row, images a class, generator seed


@dataclass(frozen=True)
class Row:
    """A line of the table: what it changes of the recipe, or which real images it stands for."""

    name: str
    overrides: Mapping[str, object] = field(default_factory=dict)
    real: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Rows:
    rows: tuple[Row, ...]
    baseline: str  # the row that differences are taken to

    def __post_init__(self) -> None:
        """InputError for a name that stands twice, an unknown baseline, or an unknown kind of real images."""
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
        if all(row.real for row in self.rows):
            raise InputError(
                "rows: all stand for real images; add one that is generated, if only {name: DiT}"
            )

    @property
    def host(self) -> str:
        """The first generated row: its runs also score the real images."""
        return next(row.name for row in self.rows if row.real is None)


@dataclass(frozen=True)
class Plan:
    """What is run: `recipe` with `overrides`, for every row, IPC and generator seed."""

    recipe: str
    overrides: Mapping[str, object]
    rows: Rows
    ipcs: tuple[int, ...]
    seeds: tuple[int, ...]
    # images a class whose coverage tells of generators, apart from any IPC; None leaves it out
    pool_images: int | None
    # whether those images' labels are judged, by a classifier of all real training images
    agreement: bool = False

    def config(self, row: Row, ipc: int, seed: int) -> Config:
        """The run of one cell. Candidates are drawn for the largest IPC, unless the row says otherwise."""
        real = sorted({row.real for row in self.rows.rows if row.real})
        shared: dict[str, object] = {"sample.pool_ipc": max(self.ipcs)}
        shared |= {"evaluate.full": False, "evaluate.unrefined": False}
        baselines = real if row.name == self.rows.host else []
        own = {"evaluate.baselines": baselines, "ipc": ipc, "seed": seed}
        words = {**shared, **self.overrides, **row.overrides, **own}
        return load_config(self.recipe, words)

    def configs(self) -> dict[Cell, Config]:
        """Of every cell; rows that choose single images also choose `pool_images`, to compare coverage."""
        configs: dict[Cell, Config] = {}
        for seed in self.seeds:
            for row in self.rows.rows:
                if row.real is not None:
                    continue
                configs |= {(row.name, ipc, seed): self.config(row, ipc, seed) for ipc in self.ipcs}
                if self.pool_images and configs[row.name, self.ipcs[0], seed].select.unit == "image":
                    configs[row.name, self.pool_images, seed] = self.config(row, self.pool_images, seed)
        return configs


def named() -> list[str]:
    """The rows that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in NAMED.iterdir() if p.name.endswith(".yaml"))


def read_rows(place: str) -> Rows:
    """The rows that a name or a YAML file stands for; InputError for what holds none."""

    def refuse(why: str) -> InputError:
        return InputError(f"--rows: {place} {why}")

    if place in named():
        text = (NAMED / f"{place}.yaml").read_text()
    elif Path(place).suffix in {".yaml", ".yml"} and Path(place).is_file():
        text = read_text(Path(place), refuse)
    else:
        raise InputError(f"--rows: {place!r} is neither a known name ({', '.join(named())}) nor a YAML file")
    values = read_yaml(text, refuse)
    is_mapping = isinstance(values, Mapping) and set(values) == {"baseline", "rows"}
    if not is_mapping or not isinstance(values["rows"], list):
        raise InputError(
            f"--rows: {place} must hold `baseline`, a row's name, and `rows`, a list; nothing else"
        )
    return Rows(tuple(_row(row, place) for row in values["rows"]), str(values["baseline"]))


def _row(row: object, place: str) -> Row:
    if not isinstance(row, Mapping) or not {"name"} <= set(row) <= {"name", "note", "overrides", "real"}:
        raise InputError(f"--rows: {row!r} in {place} is no row; give a name and note, overrides, real")
    name, overrides = str(row["name"]), row.get("overrides", {})
    if not isinstance(overrides, Mapping):
        raise InputError(f"--rows: overrides of {name!r} must be fields and values, such as {{im.weight: 0}}")
    if shared := [field for field in overrides if str(field).split(".")[0] in SHARED]:
        raise InputError(
            f"--rows: {name!r} sets {shared[0]}, which holds for all rows; give it on the command line"
        )
    return Row(name, overrides, row.get("real"), row.get("note", ""))
