"""Paired statistics of a comparison: each row against the baseline, on every metric.

A cell is a row at one number of images per class (IPC).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from ims3_ray.evaluation.results import StoredSize
from ims3_ray.evaluation.statistics import Difference, Repeats, Summary, holm, paired_difference, row_summary
from ims3_ray.method.coverage import Values

POOL = "pool/"  # prefix of metrics of a row's candidates, measured before selection
SECONDS = "seconds/"  # prefix of a stage's time
Column = Sequence[float | list[float] | None]  # a value per generator seed
Accuracy = dict[str, dict[str, list[list[float]]]]  # IPC → "last" step or "best" → values


class RowResults(TypedDict):
    """Lists run over generator seeds; the inner lists of accuracies over classifier seeds."""

    name: str
    overrides: dict[str, object]
    is_real: bool
    packing: int  # packing.factor
    stored: dict[str, StoredSize | None]  # by IPC
    note: str
    accuracy: Accuracy  # by the first network, which the document's protocol names
    networks: dict[str, Accuracy]  # protocol's label of each further network
    metrics: dict[str, dict[str, Column]]  # by IPC
    pool: dict[str, Column] | None  # None if the row has too few candidates, or none were measured
    seconds: dict[str, Column]  # by stage
    device_seconds: list[float]


class RowsDocument(TypedDict):
    """The field `comparison` of sweep.json."""

    baseline: str
    ipcs: list[int]
    generator_seeds: list[int]
    pool_images: int | None
    rows: list[RowResults]
    yardsticks: dict[str, Values] | None


@dataclass(frozen=True)
class Cell:
    accuracy: Summary
    difference: Difference | None  # None for the baseline

    @property
    def is_clear(self) -> bool:
        """Whether the row differs from the baseline by more than the noise."""
        return self.difference is not None and self.difference.larger_than_noise


@dataclass(frozen=True)
class Comparison:
    """Every row against the baseline, by the accuracy after the last step."""

    baseline: str
    rows: tuple[str, ...]
    real: frozenset[str]  # rows of real images, shown for reference
    packed: frozenset[str]  # rows of packed sets, which come last
    ipcs: tuple[int, ...]
    cells: Mapping[tuple[str, int], Cell]
    num_tests: int  # comparisons that Holm's adjustment counts

    @property
    def generated(self) -> list[str]:
        return [name for name in self.rows if name not in self.real]

    def clear(self, name: str, sign: int = 1) -> dict[int, Difference]:
        """IPC → difference, if the row is clearly above (sign 1) or below (-1) the baseline."""
        cells = {ipc: self.cells[name, ipc] for ipc in self.ipcs}
        return {
            ipc: cell.difference
            for ipc, cell in cells.items()
            if cell.difference and cell.is_clear and cell.difference.mean * sign > 0
        }


Summaries = Mapping[tuple[str, int | None, str], Summary]  # by row, IPC (None: time) and metric


def further_networks(document: RowsDocument) -> list[str]:
    """Labels of the networks after the first that scored the same sets."""
    return list(document["rows"][0]["networks"])


def compare(document: RowsDocument, network: str | None = None) -> Comparison:
    """Every row × IPC against the baseline, by the first network or `network`.

    Holm's adjustment counts all comparisons of that network.
    """
    rows = {row["name"]: row for row in document["rows"]}
    baseline, ipcs = document["baseline"], tuple(document["ipcs"])
    cells: dict[tuple[str, int], Cell] = {}
    for name, row in rows.items():
        for ipc in ipcs:
            ours, theirs = (_accuracy(r, network)[str(ipc)]["last"] for r in (row, rows[baseline]))
            difference = None if name == baseline else paired_difference(ours, theirs)
            accuracy = row_summary(ours)
            assert accuracy is not None
            cells[name, ipc] = Cell(accuracy, difference)
    p = {key: c.difference.p for key, c in cells.items() if c.difference and c.difference.p is not None}
    for key, adjusted in zip(p, holm(list(p.values())), strict=True):
        if difference := cells[key].difference:
            cells[key] = replace(cells[key], difference=replace(difference, p_adjusted=adjusted))
    real = frozenset(name for name, row in rows.items() if row["is_real"])
    packed = frozenset(name for name, row in rows.items() if row["packing"] > 1)
    order = sorted(rows, key=lambda name: name in packed)
    return Comparison(baseline, tuple(order), real, packed, ipcs, cells, len(p))


def _accuracy(row: RowResults, network: str | None) -> Accuracy:
    return row["accuracy"] if network is None else row["networks"][network]


def summarize(document: RowsDocument) -> Summaries:
    """Mean and interval over the seeds of every metric that a row has, deciles and seconds included."""
    summaries = {}
    for row in document["rows"]:
        for (ipc, metric), repeats in _columns(document, row):
            if summary := row_summary(repeats):
                summaries[row["name"], ipc, metric] = summary
    return summaries


def _columns(document: RowsDocument, row: RowResults) -> Iterator[tuple[tuple[int | None, str], Repeats]]:
    """(IPC, metric) and its repeats, a list per generator seed, of all that the row has."""
    for ipc in document["ipcs"]:
        for metric, column in row["metrics"][str(ipc)].items():
            yield from _repeats(ipc, metric, column)
    for metric, column in (row["pool"] or {}).items():
        yield from _repeats(document["pool_images"], POOL + metric, column)
    for stage, column in row["seconds"].items():
        yield from _repeats(None, SECONDS + stage, column)
    yield from _repeats(None, "device_seconds", row["device_seconds"])


def _repeats(
    ipc: int | None, metric: str, column: Column
) -> Iterator[tuple[tuple[int | None, str], Repeats]]:
    """One repeat per seed; deciles, ten values per seed, become ten metrics."""
    deciles = [values for values in column if isinstance(values, list)]
    for number, values in enumerate(zip(*deciles, strict=True), start=1):
        yield (ipc, f"{metric.removesuffix('s')}_{number}"), [[value] for value in values]
    if not deciles:
        yield (ipc, metric), [[value] for value in column if not isinstance(value, list)]
