"""The report on a sweep as one HTML page, for a person who picks a setting to run: nothing fetched, no
script.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ims3_ray.report.inputs import shortened
from ims3_ray.report.wording import environment, percent, points

from . import plots as sweep_plots
from . import shape as sweep_shape
from .claim import sweep_claim, sweep_work
from .plots import MAX_COLUMNS
from .trials import (
    ACCURACY,
    FAILED,
    FINISHED,
    IPC,
    LONGEST_VALUE,
    STOPPED,
    Sweep,
    Trial,
    metric_name,
    setting,
    short,
)

STATUSES = (FINISHED, STOPPED, FAILED)  # in the table's order


@dataclass(frozen=True)
class Row:
    """A trial as a line of the table, in words; a dash for what it does not have."""

    trial: Trial
    values: list[str]
    metrics: list[str | Markup]
    is_best: bool
    on_front: bool


def render_sweep(document: Mapping[str, Any]) -> bytes:
    """The page, UTF-8; the same bytes for the same document.

    `document`: plain data as in sweep.json. Recipe, fields, their values and errors are untrusted text.
    Figures that are missing or not finite are dashes; a stopped trial's are the last heard of it and enter no
    mean, no heat map, no front.
    """
    sweep = Sweep(document)
    names = sweep.metric_names()
    context = {
        "document": document,
        "sweep": sweep,
        "claim": sweep_claim(sweep),
        "work": sweep_work(sweep),
        "objective": metric_name(sweep.objective),
        "is_accuracy": sweep.objective == ACCURACY,
        "best": best_rows(sweep),
        "space": {field: in_words(spec) for field, spec in document["space"].items()},
        "titles": [metric_name(name) for name in names],
        "rows": rows(sweep, names),
        "failures": failures(sweep),
        "without": [short(ipc) for ipc in sweep.ipcs if short(ipc) not in sweep.best],
        "swatches": {short(ipc): place for place, ipc in enumerate(sweep_plots.ipc_colours(sweep))},
        "heat_pair": sweep_shape.heat_pair(sweep),
        "most_maps": sweep_shape.MOST_MAPS,
        "front_panels": min(len(sweep.objectives) - 1, MAX_COLUMNS),
        "plots": {
            "by_ipc": sweep_plots.by_ipc(sweep),
            "heat": sweep_shape.heat_maps(sweep),
            "fields": sweep_plots.field_panels(sweep),
            "parallel": sweep_shape.parallel(sweep),
            "pareto": sweep_plots.pareto(sweep),
            "curves": sweep_shape.curves(sweep),
        },
    }
    return environment(Path(__file__).parent).get_template("page.html").render(context).encode()


def best_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """The best trial of each IPC: its figure, its setting, and how many others lie within its interval."""
    return [
        {
            "ipc": ipc,
            "trial": trial,
            "figure": figure(trial, sweep.objective),
            "rivals": sweep.within_interval(trial),
            "values": {field: _value(trial, field) for field in sweep.axes if field != IPC},
        }
        for ipc, trial in sweep.best.items()
    ]


def rows(sweep: Sweep, names: list[str]) -> list[Row]:
    """Finished ones first, then the stopped, then the failed; in each the highest objective first."""

    def order(trial: Trial) -> tuple[int, float, int]:
        status = STATUSES.index(trial.status) if trial.status in STATUSES else len(STATUSES)
        return status, -trial.metrics.get(sweep.objective, float("-inf")), trial.number

    best, front = {trial.number for trial in sweep.best.values()}, set(sweep.document["pareto"])
    return [
        Row(
            trial,
            [_value(trial, field) for field in sweep.axes],
            [figure(trial, name) for name in names],
            trial.number in best,
            trial.number in front,
        )
        for trial in sorted(sweep.trials, key=order)
    ]


def failures(sweep: Sweep) -> dict[str, list[tuple[int, str]]]:
    """Number and setting of the failed trials by what went wrong."""
    found: dict[str, list[tuple[int, str]]] = {}
    for trial in sweep.trials:
        if trial.status == FAILED:
            found.setdefault(trial.error or "No error was reported.", []).append(
                (trial.number, setting(trial))
            )
    return found


def figure(trial: Trial, name: str) -> str | Markup:
    """A metric in words: the accuracy in percent with its interval, others plain."""
    if (found := trial.metrics.get(name)) is None:
        return "–"
    if name != ACCURACY:
        return f"{found:.3f}".replace("-", "−")
    return percent(found) + ("" if trial.interval is None else points(trial.interval, " ± "))


def in_words(spec: Mapping[str, Any]) -> str:
    """`0.1 to 0.9, log scale`, or the listed values."""
    if "values" in spec:
        return ", ".join(short(given) for given in spec["values"])
    kinds = [
        name for name, has in (("whole numbers", spec.get("integer")), ("log scale", spec.get("log"))) if has
    ]
    return ", ".join([f"{short(spec['low'])} to {short(spec['high'])}", *kinds])


def _value(trial: Trial, field: str) -> str:
    return shortened(short(trial.values[field]), LONGEST_VALUE) if field in trial.values else "–"
