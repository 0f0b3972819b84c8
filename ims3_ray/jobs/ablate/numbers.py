"""Every number of an ablation once, in long format: the page, the tables and the tracking server show these."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ims3_ray.evaluation.statistics import paired_difference, row_summary

from .comparison import Comparison, repeats_of

SECONDS = "seconds/"  # what the names of a stage's time begin with
POOL = "pool/"  # what the names of metrics on a row's pool begin with, measured before selection
DECILES = "deciles"


@dataclass(frozen=True)
class Measurement:
    """A metric of a row; `difference` is to the baseline, paired by generator seed. None: undefined or not
    measured.
    """

    row: str
    ipc: int | None
    """Images a class; of metrics on the pool, the pool's; None for time."""
    metric: str
    mean: float
    interval: float | None
    """Half width at 95 %, over generator seeds."""
    difference: float | None
    difference_interval: float | None
    p_adjusted: float | None
    """For the accuracy alone: other metrics are descriptions, and no choice rests on them."""
    n: int
    """Generator seeds."""


def measurements(document: Mapping[str, Any], comparison: Comparison) -> list[Measurement]:
    """Row by row: accuracy after the last step and the best, metrics by IPC, of the pool, deciles, seconds."""
    rows = {row["name"]: row for row in document["rows"]}
    theirs = {(ipc, metric): values for ipc, metric, values in _columns(document, rows[comparison.baseline])}
    found = []
    for name, row in rows.items():
        for ipc, metric, values in _columns(document, row):
            if (mean := row_summary(values)) is None:
                continue
            base = theirs.get((ipc, metric)) if name != comparison.baseline else None
            versus = paired_difference(values, base) if base and len(base) == len(values) else None
            tested = comparison.cells[name, ipc].difference if metric == "accuracy" else None
            found.append(
                Measurement(
                    name, ipc, metric, mean.mean, mean.interval,
                    versus and versus.mean, versus and versus.interval, tested and tested.p_adjusted, mean.count,
                )
            )  # fmt: skip
    return found


def _columns(
    document: Mapping[str, Any], row: Mapping[str, Any]
) -> Iterator[tuple[int | None, str, Sequence]]:
    """(ipc, metric, a list a generator seed of its repeats) of everything that the row has."""
    for ipc in document["ipcs"]:
        yield ipc, "accuracy", repeats_of(row, ipc)
        yield ipc, "accuracy_best", repeats_of(row, ipc, "best")
        for metric, values in ((row.get("metrics") or {}).get(str(ipc)) or {}).items():
            yield from _by_seed(ipc, metric, values)
    for metric, values in (row.get("pool") or {}).items():
        yield from _by_seed(document["pool_images"], POOL + metric, values)
    for stage, values in (row.get("seconds") or {}).items():
        yield from _by_seed(None, SECONDS + stage, values)
    yield from _by_seed(None, "device_seconds", row.get("device_seconds"))


def _by_seed(ipc: int | None, metric: str, values: Any) -> Iterator[tuple[int | None, str, Sequence]]:
    """One repeat a seed; deciles, ten values a seed, become ten metrics."""
    if values is None:
        return
    values = values if isinstance(values, list) else [values]
    if metric.removeprefix(POOL) != DECILES:
        yield ipc, metric, [[value] for value in values]
        return
    for place in range(max((len(of_seed) for of_seed in values if of_seed), default=0)):
        yield (
            ipc,
            f"{metric.removesuffix('s')}_{place + 1}",
            [of_seed and [of_seed[place]] for of_seed in values],
        )


def by_row(found: Sequence[Measurement]) -> dict[str, dict[tuple[int | None, str], Measurement]]:
    """The measurements by row, then by (ipc, metric)."""
    rows: dict[str, dict[tuple[int | None, str], Measurement]] = {}
    for one in found:
        rows.setdefault(one.row, {})[one.ipc, one.metric] = one
    return rows
