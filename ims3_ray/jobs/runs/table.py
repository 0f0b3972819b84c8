"""What jobs/runs.py prints of runs, and their CSV."""

import csv
import io
import math
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

from ims3_ray.runs.query import BestRun, Differences, ParetoFront, Run, metric_value, objectives, swept_fields

FACTS = ("kind", "protocol", "status")
PARAMS = {"ipc": "ipc", "G": "sample.subgroups", "seed": "seed"}  # by head
METRICS = {
    "accuracy": "accuracy",
    "random real": "accuracy/random/last",
    "coverage": "coverage/distilled",
    "low-density": "low_density_coverage/distilled",
}
CSV_FACTS = (
    "name", "key", "kind", "protocol", "scored", "status", "start_time", "end_time", "run_id", "parent"
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute what begins so
NONE = "–"


def table(
    runs: Sequence[Run],
    metrics: Mapping[str, str] = METRICS,
    params: Mapping[str, str] = PARAMS,
    indent: int = 0,
) -> list[str]:
    """A line a run: name, kind, protocol, state and stage, the recipe's fields, the metrics, by heads."""
    if not runs:
        return ["no run matches"]
    rows = [["run", *FACTS, *params, *metrics]]
    for run in runs:
        figures = (metric_value(run, name) for name in metrics.values())
        fields = (run["params"].get(field, NONE) for field in params.values())
        facts = (_text(run[name]) for name in FACTS)
        rows.append([run["name"], *facts, *fields, *(NONE if v != v else f"{v:.4f}" for v in figures)])
        if run["stage"]:
            rows[-1][len(FACTS)] += f" {run['stage']}"
    return align(rows, range(1 + len(FACTS)), indent)


def trials_table(sweep: Run, trials: Sequence[Run]) -> list[str]:
    """A line a trial: with the fields that vary, and the objectives among the metrics."""
    names = objectives(sweep)
    metrics = {name.partition("/")[0]: name for name in names}
    metrics |= {head: name for head, name in METRICS.items() if name not in names and _is_known(name, trials)}
    return table(trials, metrics, {field: field for field in swept_fields(sweep, trials)})


def _is_known(name: str, runs: Sequence[Run]) -> bool:
    return any(name in run["metrics"] for run in runs)


def best_table(rows: Iterable[BestRun], metric: str) -> list[str]:
    plain = metric.removeprefix("-")
    metrics = {plain: plain} | {head: name for head, name in METRICS.items() if name != plain}
    groups: dict[str, list[Run]] = {}
    for row in rows:
        groups.setdefault(_heading(row), []).append(row["run"])
    return _below_headings(groups, metrics) or ["no run matches"]


def fronts_table(fronts: Iterable[ParetoFront], names: Iterable[str]) -> list[str]:
    metrics = {name.removeprefix("-"): name.removeprefix("-") for name in names}
    groups = {_heading(front): front["runs"] for front in fronts}
    return _below_headings(groups, metrics) or ["no run has all of these"]


def differences_table(one: Run, other: Run, differences: Differences) -> list[str]:
    """Three parts: parameters, versions and hardware, metrics with what the second has more."""
    lines = []
    for kind, head in {"params": "parameter", "tags": "tag", "metrics": "metric"}.items():
        if not differences[kind]:
            lines.append(f"{kind}: no difference")
            continue
        are_numbers = kind == "metrics"
        rows = [[head, one["name"], other["name"], *(["difference"] if are_numbers else [])]]
        for name, (first, second) in differences[kind].items():
            rows.append([name, _text(first), _text(second)])
            if isinstance(first, float) and isinstance(second, float):
                rows[-1].append(f"{second - first:+.4f}")
            elif are_numbers:
                rows[-1].append(NONE)
        lines += align(rows, left=[0] if are_numbers else range(3))
    return lines


def as_csv(runs: Iterable[Run]) -> str:
    """A line a run; parameters and metrics under the names that mlflow.search_runs gives them."""
    runs = list(runs)
    params = sorted({name for run in runs for name in run["params"]})
    metrics = sorted({name for run in runs for name in run["metrics"]})
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    heads = [*CSV_FACTS, *(f"params.{name}" for name in params), *(f"metrics.{name}" for name in metrics)]
    writer.writerow(map(_inert, heads))
    for run in runs:
        texts = [*(run[name] for name in CSV_FACTS), *(run["params"].get(name) for name in params)]
        writer.writerow([*map(_inert, texts), *(run["metrics"].get(name, "") for name in metrics)])
    return sink.getvalue()


def align(rows: Sequence[Sequence[str]], left: Collection[int], indent: int = 0) -> list[str]:
    """Rows of cells as lines, two blanks between: columns in `left` flush left, the others flush right.

    Of what is wider than the terminal columns without room follow below, beside the first again.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    padded = [
        [cell.ljust(width) if at in left else cell.rjust(width) for cell in column]
        for at, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    room = shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else math.inf
    blocks, used = [[padded[0]]], widths[0]
    for column, width in zip(padded[1:], widths[1:], strict=True):
        if used + 2 + width > room and len(blocks[-1]) > 1:
            blocks, used = [*blocks, [padded[0]]], widths[0]
        blocks[-1].append(column)
        used += 2 + width
    tables = (["  ".join(row).rstrip() for row in zip(*block, strict=True)] for block in blocks)
    return [line for place, lines in enumerate(tables) for line in ([""] if place else []) + lines]


def _below_headings(groups: Mapping[str, Sequence[Run]], metrics: Mapping[str, str]) -> list[str]:
    tables = (
        [heading, *(f"  {line}".rstrip() for line in table(runs, metrics, indent=2))]
        for heading, runs in groups.items()
    )
    return [line for lines in tables for line in lines]


def _heading(of: BestRun | ParetoFront) -> str:
    scored = f", scored images {of['scored']}" if of["scored"] else ""
    return f"protocol {of['protocol'] or NONE}{scored}"


def _text(value: object) -> str:
    return NONE if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _inert(value: object) -> object:
    """A text that no spreadsheet takes for a formula; numbers stay numbers."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
