"""What an ablation runs: its rows, and the configuration of every cell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ims3_ray.config.load import load_config
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.stages.evaluate.baselines import CORESETS

REAL = ("random", *CORESETS)
YARDSTICKS = ("random", "ceiling")  # beside the rows, whose names these can't be
Cell = tuple[str, int, int]  # name of a row, images a class, generator seed


@dataclass(frozen=True)
class Row:
    """A line of the table: what it changes of the recipe, or which real images it stands for."""

    name: str
    overrides: Mapping[str, Any]
    real: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Rows:
    rows: tuple[Row, ...]
    baseline: str  # the row that differences are taken to

    def __post_init__(self):
        """InputError for a name that stands twice, an unknown baseline, and real images of an unknown kind."""
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise InputError(f"rows: {row.name!r} stands twice; name every row differently")
            if row.name in YARDSTICKS:
                raise InputError(f"rows: the name {row.name!r} is a yardstick's; name the row differently")
            if row.real is not None and row.real not in REAL:
                raise InputError(
                    f"rows: {row.name!r}: real={row.real!r} is unknown; choose one of {', '.join(REAL)}"
                )
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
    overrides: Mapping[str, Any]
    rows: Rows
    ipcs: tuple[int, ...]
    seeds: tuple[int, ...]
    # images a class whose coverage tells of generators, apart from any IPC; None leaves it out
    pool_images: int | None

    def config(self, row: Row, ipc: int, seed: int) -> Config:
        """The run of one cell. Candidates are drawn for the largest IPC, unless the row says otherwise."""
        real = sorted({row.real for row in self.rows.rows if row.real})
        shared = {
            "sample.pool_ipc": max(self.ipcs),
            "evaluate.full": False,
            "evaluate.baselines": real if row.name == self.rows.host else [],
        }
        return load_config(
            self.recipe, shared | {**self.overrides, **row.overrides, "ipc": ipc, "seed": seed}
        )

    def configs(self) -> dict[Cell, Config]:
        """Of every cell; rows that choose single images also choose `pool_images`, whose coverage is
        compared.
        """
        found = {}
        for seed in self.seeds:
            for row in self.rows.rows:
                if row.real is not None:
                    continue
                found |= {(row.name, ipc, seed): self.config(row, ipc, seed) for ipc in self.ipcs}
                if self.pool_images and found[row.name, self.ipcs[0], seed].select.unit == "image":
                    found[row.name, self.pool_images, seed] = self.config(row, self.pool_images, seed)
        return found
