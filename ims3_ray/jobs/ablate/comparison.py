"""The rows of an ablation against its baseline, on the accuracy after the last step, in numbers and words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ims3_ray.errors import InputError
from ims3_ray.evaluation.statistics import Difference, Repeats, Summary, holm, paired_difference, row_summary


@dataclass(frozen=True)
class Cell:
    """A row at one IPC. `accuracy` is None where it failed; `difference` also where the baseline did, and for
    itself.
    """

    accuracy: Summary | None
    difference: Difference | None


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


def compare(document: Mapping[str, Any]) -> Comparison:
    """Every row × IPC of an ablation document against its baseline, adjusted over all of them by Holm.

    Raises InputError for a baseline that is no row, a name used twice, and a cell with another number of
    generator seeds.
    """
    rows = {row["name"]: row for row in document["rows"]}
    _check(document, rows)
    baseline, ipcs = document["baseline"], tuple(document["ipcs"])
    cells = {}
    for name, row in rows.items():
        for ipc in ipcs:
            repeats = repeats_of(row, ipc)
            versus = None if name == baseline else paired_difference(repeats, repeats_of(rows[baseline], ipc))
            cells[name, ipc] = Cell(row_summary(repeats), versus)
    tested = [key for key, cell in cells.items() if cell.difference and cell.difference.p is not None]
    for key, p in zip(tested, holm([cells[key].difference.p for key in tested]), strict=True):
        cells[key] = replace(cells[key], difference=replace(cells[key].difference, p_adjusted=p))
    real = frozenset(name for name, row in rows.items() if row["is_real"])
    return Comparison(baseline, tuple(rows), real, ipcs, cells, len(tested))


def in_words(comparison: Comparison) -> list[str]:
    """A sentence a row: at which IPCs it differs from the baseline by more than the noise, and at which not."""
    return [_sentence(comparison, name) for name in comparison.rows if name != comparison.baseline]


def points(fraction: float) -> str:
    """Percentage points without a sign: 0.0123 is 1.2; below 0.05 points, a digit more."""
    size = 100 * abs(fraction)
    return f"{size:.2f}" if 0.005 <= size < 0.05 else f"{size:.1f}"


def p_in_words(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _sentence(comparison: Comparison, name: str) -> str:
    cells = {ipc: comparison.cells[name, ipc] for ipc in comparison.ipcs}
    if all(cell.accuracy is None for cell in cells.values()):
        return f"{name} gave no result."
    clear = {
        ipc: cell for ipc, cell in cells.items() if cell.difference and cell.difference.larger_than_noise
    }
    first = [
        _versus(cell.difference, comparison.baseline, ipc, place == 0)
        for place, (ipc, cell) in enumerate(clear.items())
    ]
    rest = [f"at {ipc}: {_unclear(cell)}" for ipc, cell in cells.items() if ipc not in clear]
    if not first:
        first = [f"not shown to differ from {comparison.baseline}"]
    return f"{name} is {'; '.join([', '.join(first), *rest])}."


def _versus(difference: Difference, baseline: str, ipc: int, in_full: bool) -> str:
    """`1.2 ± 0.5 points above DiT at 10 images a class (p = 0.003, adjusted)`, or its short form for a second
    one.
    """
    side, p = "above" if difference.mean > 0 else "below", p_in_words(difference.p_adjusted)
    size = f"{points(difference.mean)} ± {points(difference.interval)}"
    if not in_full:
        return f"{size} {side} at {ipc} ({p})"
    return f"{size} points {side} {baseline} at {ipc} image{'' if ipc == 1 else 's'} a class ({p}, adjusted)"


def _unclear(cell: Cell) -> str:
    if cell.accuracy is None:
        return "no result"
    found = cell.difference
    if found is None:
        return "no result of the baseline to pair with"
    signed = f"{'−' if found.mean < 0 else '+'}{points(found.mean)}"
    if found.count == 1:
        return f"{signed} points of one generator seed, no interval, so it can't be told from noise"
    if found.p is None:
        return f"{signed} points in every pair of seeds, without spread, so it can't be tested"
    return f"within the noise ({signed} ± {points(found.interval)})"


def repeats_of(row: Mapping[str, Any], ipc: int, which: str = "last") -> Repeats:
    """The accuracies of a cell, a list a generator seed; empty where the row failed."""
    return ((row.get("accuracy") or {}).get(str(ipc)) or {}).get(which) or []


def _check(document: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    names = [row["name"] for row in document["rows"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"rows: the name {twice[0]!r} stands twice; give every row a name of its own")
    if document["baseline"] not in rows:
        raise InputError(
            f"baseline: {document['baseline']!r} is no row; choose one of {', '.join(map(repr, rows))}"
        )
    seeds = len(document["generator_seeds"])
    for name, ipc, found in _lengths(document, rows):
        if found != seeds:
            raise InputError(
                f"rows: {name!r} at {ipc} images a class has {found} generator seeds, the document {seeds}; "
                "give a list for each seed, null for one that failed"
            )


def _lengths(document: Mapping[str, Any], rows: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    for name, row in rows.items():
        for ipc in document["ipcs"]:
            if repeats := repeats_of(row, ipc):
                yield name, ipc, len(repeats)
