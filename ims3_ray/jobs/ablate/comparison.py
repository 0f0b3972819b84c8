"""An ablation's document, its rows against the baseline, and every number of it once.

A cell is a row at one number of images a class (IPC). The page, the tables and the tracking server show what
stands here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from ims3_ray.evaluation.statistics import Difference, Repeats, Summary, holm, paired_difference, row_summary
from ims3_ray.method.coverage import Values

POOL = "pool/"  # what the names of metrics on a row's pool begin with, measured before selection
SECONDS = "seconds/"  # what the names of a stage's time begin with
Key = tuple[int | None, str]  # IPC and metric
Column = Sequence[float | list[float] | None]  # a value a generator seed
Accuracy = dict[str, dict[str, list[list[float]]]]  # by IPC, of the last step and the best


class Row(TypedDict):
    """Lists are over generator seeds; the inner lists of accuracies over classifier seeds."""

    name: str
    overrides: dict[str, object]
    is_real: bool
    note: str
    accuracy: Accuracy  # of the first network, which the document's protocol names
    networks: dict[str, Accuracy]  # of the others, by the protocol's label
    metrics: dict[str, dict[str, Column]]  # by IPC
    pool: dict[str, Column] | None  # None where it has too few candidates, or none was asked for
    seconds: dict[str, Column]  # by stage
    device_seconds: list[float]


class Ablation(TypedDict):
    """ablation.json."""

    title: str  # its recipe, or the images that stand in place of the recipe's
    recipe: str
    protocol: str
    split: str
    baseline: str
    ipcs: list[int]
    generator_seeds: list[int]
    classifier_seeds: int
    pool_images: int | None
    device: str
    written: str
    rows: list[Row]
    yardsticks: dict[str, Values] | None


@dataclass(frozen=True)
class Cell:
    accuracy: Summary
    difference: Difference | None  # None for the baseline itself

    @property
    def is_clear(self) -> bool:
        return self.difference is not None and self.difference.larger_than_noise


@dataclass(frozen=True)
class Comparison:
    """Every row of an ablation against its baseline, on the accuracy after the last step."""

    baseline: str
    rows: tuple[str, ...]
    real: frozenset[str]
    """Rows of real images: yardsticks, never what is shipped."""
    ipcs: tuple[int, ...]
    cells: Mapping[tuple[str, int], Cell]
    num_tests: int
    """Comparisons that Holm's adjustment counts."""


@dataclass(frozen=True)
class Measurement:
    """A metric of a row; `difference` is to the baseline, paired by generator seed. None: undefined."""

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
    """For accuracies alone: other metrics are descriptions, and no choice rests on them."""
    n: int
    """Generator seeds."""


Measurements = Mapping[tuple[str, int | None, str], Measurement]  # by row, IPC and metric


def networks_beside(document: Ablation) -> list[str]:
    """Labels of the networks but the first that the same sets were scored by."""
    return list(document["rows"][0]["networks"])


def compare(document: Ablation, network: str | None = None) -> Comparison:
    """Every row × IPC against the baseline, by the first network or one beside it; adjusted by Holm over all
    comparisons of that network.
    """
    rows = {row["name"]: row for row in document["rows"]}
    baseline, ipcs = document["baseline"], tuple(document["ipcs"])
    cells: dict[tuple[str, int], Cell] = {}
    for name, row in rows.items():
        for ipc in ipcs:
            ours, theirs = (_accuracy(of, network)[str(ipc)]["last"] for of in (row, rows[baseline]))
            versus = None if name == baseline else paired_difference(ours, theirs)
            accuracy = row_summary(ours)
            assert accuracy is not None
            cells[name, ipc] = Cell(accuracy, versus)
    p = {key: c.difference.p for key, c in cells.items() if c.difference and c.difference.p is not None}
    for key, adjusted in zip(p, holm(list(p.values())), strict=True):
        if difference := cells[key].difference:
            cells[key] = replace(cells[key], difference=replace(difference, p_adjusted=adjusted))
    real = frozenset(name for name, row in rows.items() if row["is_real"])
    return Comparison(baseline, tuple(rows), real, ipcs, cells, len(p))


def _accuracy(row: Row, network: str | None) -> Accuracy:
    return row["accuracy"] if network is None else row["networks"][network]


def measurements(document: Ablation, comparison: Comparison) -> Measurements:
    """Row by row: accuracy by every network, metrics by IPC and of the pool, deciles, seconds."""
    tested_by = {"accuracy": comparison} | {
        f"accuracy/{label}": compare(document, label) for label in networks_beside(document)
    }
    columns = {row["name"]: dict(_columns(document, row)) for row in document["rows"]}
    of_baseline = columns[comparison.baseline]
    numbers: dict[tuple[str, int | None, str], Measurement] = {}
    for name, of_row in columns.items():
        for (ipc, metric), repeats in of_row.items():
            if (mean := row_summary(repeats)) is None:
                continue
            theirs = () if name == comparison.baseline else of_baseline.get((ipc, metric), ())
            versus = paired_difference(repeats, theirs)
            tested = tested_by[metric].cells[name, ipc].difference if ipc and metric in tested_by else None
            numbers[name, ipc, metric] = Measurement(
                name,
                ipc,
                metric,
                mean.mean,
                mean.interval,
                versus and versus.mean,
                versus and versus.interval,
                tested and tested.p_adjusted,
                mean.count,
            )
    return numbers


def _columns(document: Ablation, row: Row) -> Iterator[tuple[Key, Repeats]]:
    """A list a generator seed of its repeats, of everything that the row has."""
    for ipc in document["ipcs"]:
        yield (ipc, "accuracy"), row["accuracy"][str(ipc)]["last"]
        yield (ipc, "accuracy_best"), row["accuracy"][str(ipc)]["best"]
        for label, accuracy in row["networks"].items():
            yield (ipc, f"accuracy/{label}"), accuracy[str(ipc)]["last"]
        for metric, column in row["metrics"][str(ipc)].items():
            yield from _by_seed(ipc, metric, column)
    for metric, column in (row["pool"] or {}).items():
        yield from _by_seed(document["pool_images"], POOL + metric, column)
    for stage, column in row["seconds"].items():
        yield from _by_seed(None, SECONDS + stage, column)
    yield from _by_seed(None, "device_seconds", row["device_seconds"])


def _by_seed(ipc: int | None, metric: str, column: Column) -> Iterator[tuple[Key, Repeats]]:
    """One repeat a seed; deciles, ten values a seed, become ten metrics."""
    deciles = [values for values in column if isinstance(values, list)]
    for place, values in enumerate(zip(*deciles, strict=True), start=1):
        yield (ipc, f"{metric.removesuffix('s')}_{place}"), [[value] for value in values]
    if not deciles:
        yield (ipc, metric), [[value] for value in column if not isinstance(value, list)]
