"""Tables of runs for the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from ims3_ray.display import align_columns
from ims3_ray.runs.query import BestRun, Differences, Run, metric_value, objectives, swept_fields

FACTS = ("kind", "protocol", "status")
PARAMS = {"ipc": "ipc", "G": "sample.subgroups", "seed": "seed"}  # heading → parameter
METRICS = {
    "accuracy": "accuracy",
    "random real": "accuracy/random/last",
    "coverage": "coverage/distilled",
    "low-density": "low_density_coverage/distilled",
}
NONE = "–"


def table(
    runs: Sequence[Run],
    metrics: Mapping[str, str] = METRICS,
    params: Mapping[str, str] = PARAMS,
    indent: int = 0,
) -> list[str]:
    """A line per run: name, kind, protocol, status, and `params` and `metrics` below their headings."""
    if not runs:
        return ["no run matches"]
    rows = [["run", *FACTS, *params, *metrics]]
    for run in runs:
        values = (metric_value(run, name) for name in metrics.values())
        fields = (run["params"].get(field, NONE) for field in params.values())
        facts = (_text(run[name]) for name in FACTS)
        rows.append([run["name"], *facts, *fields, *(NONE if v != v else f"{v:.4f}" for v in values)])
        if run["stage"]:
            rows[-1][len(FACTS)] += f" {run['stage']}"
    return align_columns(rows, range(1 + len(FACTS)), indent)


def trials_table(sweep: Run, trials: Sequence[Run]) -> list[str]:
    """A line per trial, with the swept fields and the objectives."""
    names = objectives(sweep)
    metrics = {name.partition("/")[0]: name for name in names}
    logged = {name for trial in trials for name in trial["metrics"]}
    metrics |= {head: name for head, name in METRICS.items() if name in logged and name not in names}
    return table(trials, metrics, {field: field for field in swept_fields(sweep, trials)})


def best_table(rows: Iterable[BestRun], metric: str) -> list[str]:
    plain = metric.removeprefix("-")
    metrics = {plain: plain} | {heading: name for heading, name in METRICS.items() if name != plain}
    groups: dict[str, list[Run]] = {}
    for row in rows:
        scored = f", scored images {row['scored']}" if row["scored"] else ""
        groups.setdefault(f"protocol {row['protocol'] or NONE}{scored}", []).append(row["run"])
    tables = ([heading, *table(runs, metrics, indent=2)] for heading, runs in groups.items())
    return [line for lines in tables for line in lines] or ["no run matches"]


def differences_table(one: Run, other: Run, differences: Differences) -> list[str]:
    """Three tables: parameters, tags, and metrics with the second run's value minus the first's."""
    lines = []
    for kind, heading in {"params": "parameter", "tags": "tag", "metrics": "metric"}.items():
        if not differences[kind]:
            lines.append(f"{kind}: no difference")
            continue
        are_numbers = kind == "metrics"
        rows = [[heading, one["name"], other["name"], *(["difference"] if are_numbers else [])]]
        for name, (first, second) in differences[kind].items():
            rows.append([name, _text(first), _text(second)])
            if isinstance(first, float) and isinstance(second, float):
                rows[-1].append(f"{second - first:+.4f}")
            elif are_numbers:
                rows[-1].append(NONE)
        lines += align_columns(rows, left=[0] if are_numbers else range(3))
    return lines


def _text(value: object) -> str:
    return NONE if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
