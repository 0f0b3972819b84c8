"""What jobs/runs.py prints of runs, and their CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ims3_ray.runs.query import Run, logged

FACTS = ("kind", "protocol", "status")
PARAMS = {"ipc": "ipc", "G": "sample.subgroups", "seed": "seed"}  # by head
METRICS = {
    "accuracy": "accuracy",
    "random real": "accuracy/random/last",
    "coverage": "coverage/distilled",
    "low-density": "low_density_coverage/distilled",
}
CSV_FACTS = ("name", "key", "kind", "protocol", "scored", "status", "start_time", "run_id", "parent")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute what begins so
NONE = "–"


def table(runs: Sequence[Run], metrics: Mapping[str, str] = METRICS) -> list[str]:
    """A line a run: name, kind, protocol, state, the recipe's main fields, the headline metrics."""
    if not runs:
        return ["no run matches"]
    heads = ["run", *FACTS, *PARAMS, *metrics]
    return aligned(
        [heads, *([_text(run["name"]), *_cells(run, metrics)] for run in runs)], left=1 + len(FACTS)
    )


def best_table(found: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    if not found:
        return ["no run matches"]
    metrics = {head: name for head, name in METRICS.items() if name != metric.removeprefix("-")}
    plain = metric.removeprefix("-")
    lines = []
    for heading, of_protocol in _by_protocol([(line, line["run"]) for line in found]).items():
        lines += [heading, *(f"  {line}" for line in table(of_protocol, {plain: plain, **metrics}))]
    return lines


def fronts_table(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    if not found:
        return ["no run has all of these"]
    lines = []
    for front in found:
        metrics = {name.removeprefix("-"): name.removeprefix("-") for name in names}
        lines += [_heading(front), *(f"  {line}" for line in table(front["runs"], metrics))]
    return lines


def differences_table(one: Run, other: Run, found: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[str]:
    """Three parts: parameters, versions and hardware, metrics with what the second has more."""
    heads = {"params": "parameter", "tags": "tag", "metrics": "metric"}
    lines = []
    for kind, head in heads.items():
        if not found[kind]:
            lines.append(f"{kind}: no difference")
            continue
        rows = [[head, one["name"], other["name"], *(["difference"] if kind == "metrics" else [])]]
        for name, (first, second) in found[kind].items():
            row = [name, _text(first), _text(second)]
            if kind == "metrics":
                row.append(NONE if first is None or second is None else f"{second - first:+.4f}")
            rows.append(row)
        lines += aligned(rows, left=1 if kind == "metrics" else 3)
    return lines


def as_csv(runs: Sequence[Run]) -> str:
    """A line a run; parameters and metrics under the names that mlflow.search_runs gives them."""
    params = sorted({name for run in runs for name in run["params"]})
    metrics = sorted({name for run in runs for name in run["metrics"]})
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    heads = [*CSV_FACTS, *(f"params.{name}" for name in params), *(f"metrics.{name}" for name in metrics)]
    writer.writerow([_inert(head) for head in heads])
    for run in runs:
        texts = [*(run[name] for name in CSV_FACTS), *(run["params"].get(name) for name in params)]
        writer.writerow([*map(_inert, texts), *(run["metrics"].get(name, "") for name in metrics)])
    return sink.getvalue()


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows of cells as lines: the first `left` columns flush left, numbers flush right, two blanks between."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if at < left else cell.rjust(w)
            for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(row) for row in rows]


def _cells(run: Run, metrics: Mapping[str, str]) -> list[str]:
    facts = [_text(run[name]) for name in FACTS]
    params = [run["params"].get(field, NONE) for field in PARAMS.values()]
    return [*facts, *params, *(_number(logged(run, name)) for name in metrics.values())]


def _by_protocol(lines: Sequence[tuple[Mapping[str, Any], Run]]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for line, run in lines:
        found.setdefault(_heading(line), []).append(run)
    return found


def _heading(line: Mapping[str, Any]) -> str:
    scored = f", scored images {line['scored']}" if line["scored"] else ""
    return f"protocol {line['protocol'] or NONE}{scored}"


def _number(value: float) -> str:
    return NONE if value != value else f"{value:.4f}"


def _text(value: Any) -> str:
    return NONE if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _inert(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula; numbers stay numbers."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
