"""The report on a sweep as one HTML page, for a person who picks a setting to run. It fetches nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ims3_ray.report.formatting import environment, percent, points
from ims3_ray.report.inputs import shortened
from ims3_ray.runs.records import FAILED, FINISHED, STOPPED

from . import heatmap, plots
from .document import Document
from .headline import sweep_claim, sweep_work
from .results import ACCURACY, IPC, LONGEST_VALUE, Results, metric_name, setting, short
from .trial_state import Trial

STATUSES = (FINISHED, STOPPED, FAILED)  # in the table's order


@dataclass(frozen=True)
class Row:
    """A trial as a line of the table, in words; a dash for what it does not have."""

    trial: Trial
    cells: list[str]
    metrics: list[str | Markup]
    is_best: bool
    on_front: bool


def render_sweep(document: Document, trials: Sequence[Trial]) -> bytes:
    """The page, UTF-8; the same bytes for the same sweep.

    Recipe, fields, their values and errors are untrusted text. Figures that are missing are
    dashes; a stopped trial's are the last heard of it and enter no mean, no heat map, no front.
    """
    results = Results(document, trials)
    context = {
        "document": document,
        "results": results,
        "claim": sweep_claim(results),
        "work": sweep_work(results),
        "objective": metric_name(results.objective),
        "is_accuracy": results.objective == ACCURACY,
        "best": best_columns(results),
        "space": {field: _in_words(spec) for field, spec in document["space"].items()},
        "titles": [metric_name(name) for name in results.metric_names()],
        "rows": rows(results),
        "failures": failures(results),
        "without": [short(ipc) for ipc in results.ipcs if short(ipc) not in results.best],
        "swatches": {short(ipc): place for place, ipc in enumerate(plots.ipc_colours(results))},
        "heat_pair": heatmap.heat_pair(results),
        "most_maps": heatmap.MOST_MAPS,
        "front_panels": min(len(results.objectives) - 1, plots.MAX_COLUMNS),
        "plots": {
            "by_ipc": plots.by_ipc(results),
            "heat": heatmap.heat_maps(results),
            "fields": plots.field_panels(results),
            "pareto": plots.pareto(results),
        },
    }
    return environment(Path(__file__).parent).get_template("page.html").render(context).encode()


def best_columns(results: Results) -> list[dict[str, object]]:
    """The best trial of each IPC: its figure, its setting, and how many others lie within its interval."""
    return [
        {
            "ipc": ipc,
            "trial": trial.number,
            "figure": _figure(trial, results.objective),
            "rivals": results.rivals(trial),
            "cells": {field: _cell(trial, field) for field in results.axes if field != IPC},
        }
        for ipc, trial in results.best.items()
    ]


def rows(results: Results) -> list[Row]:
    """Finished ones first, then the stopped, then the failed; in each the highest objective first."""

    def order(trial: Trial) -> tuple[int, float, int]:
        status = STATUSES.index(trial.state) if trial.state in STATUSES else len(STATUSES)
        return status, -trial.metrics.get(results.objective, float("-inf")), trial.number

    return [
        Row(
            trial,
            [_cell(trial, field) for field in results.axes],
            [_figure(trial, name) for name in results.metric_names()],
            trial in results.best.values(),
            trial.number in results.document["pareto"],
        )
        for trial in sorted(results.trials, key=order)
    ]


def failures(results: Results) -> dict[str, list[tuple[int, str]]]:
    """Number and setting of the failed trials by what went wrong."""
    causes: dict[str, list[tuple[int, str]]] = {}
    for trial in results.trials:
        if trial.state == FAILED:
            cause = causes.setdefault(trial.error or "No error was reported.", [])
            cause.append((trial.number, setting(trial)))
    return causes


def _figure(trial: Trial, name: str) -> str | Markup:
    """A metric in words: the accuracy in percent with its interval, others plain."""
    if (figure := trial.metrics.get(name)) is None:
        return "–"
    if name != ACCURACY:
        return f"{figure:.3f}".replace("-", "−")
    return percent(figure) + ("" if trial.interval is None else points(trial.interval, " ± "))


def _in_words(spec: Mapping) -> str:
    """`0.1 to 0.9, log scale`, or the listed values."""
    if "values" in spec:
        return ", ".join(map(short, spec["values"]))
    kinds = [name for key, name in (("integer", "whole numbers"), ("log", "log scale")) if spec.get(key)]
    return ", ".join([f"{short(spec['low'])} to {short(spec['high'])}", *kinds])


def _cell(trial: Trial, field: str) -> str:
    return shortened(short(trial.values[field]), LONGEST_VALUE) if field in trial.values else "–"
