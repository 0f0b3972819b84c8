"""The report on a run as one HTML page: images, plots and style inside, nothing fetched, no script."""

from collections.abc import Mapping
from typing import Any

from . import coverage_plots, plots
from .claim import claim
from .coverage_plots import Line
from .images import contact_sheet, is_small, missed_strips, strips
from .inputs import ReportData, shown_classes
from .projection import feature_map
from .svg import CLASS_COLOURS, INK
from .wording import METRICS, environment

__all__ = ["ReportData", "contact_sheet", "render"]

DECILES = "deciles"  # the key of a coverage block that holds ten values, not one


def render(data: ReportData) -> bytes:
    """The page, UTF-8; the same bytes for the same data. Raises OSError for bytes that are no image."""
    counts = [len(data.contact[name]["distilled"]) for name in data.classes]
    context = {
        "data": data,
        "images": sum(counts),
        "per_class": f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}",
        "claim": claim(data.evaluation),
        "set_name": plots.set_name,
        "strips": strips(data),
        "small": is_small(data),
        "missed": missed_strips(data),
        **_evaluation(data.evaluation),
        **_map(data),
        "finetuning": plots.finetuning(data.history),
        "history": _last_metrics(data),
        **_selection(data),
        "seconds": sum(stage["seconds"] for stage in data.stages),
        "slowest": max((stage["seconds"] for stage in data.stages), default=0),
        "config": _sections(data.config),
    }
    return environment().get_template("page.html").render(context).encode()


def _evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    if evaluation is None:
        return {"accuracy": None, "curves": None, "metrics": [], "deciles": None, "share": None}
    sets, coverage = evaluation["sets"], evaluation.get("coverage") or {}
    names = dict.fromkeys(name for values in coverage.values() for name in values if name != DECILES)
    rows = [
        (*METRICS.get(name, (name, "")), [coverage[of].get(name) for of in coverage])
        for name in [
            *(name for name in METRICS if name in names),
            *(name for name in names if name not in METRICS),
        ]
    ]
    both = "full" in sets and "distilled" in sets
    share = sets["distilled"]["last"]["mean"] / sets["full"]["last"]["mean"] if both else None
    return {
        "accuracy": plots.accuracy(sets),
        "curves": plots.learning_curves(sets),
        "metrics": rows,
        "deciles": coverage_plots.by_decile(_decile_lines(coverage)),
        "share": share,
    }


def _decile_lines(coverage: Mapping[str, Any]) -> list[Line]:
    """A line a set that has deciles; the random real subset and the ceiling are yardsticks."""
    colours = plots.SET_COLOURS | {"ceiling": INK}
    lines = []
    for place, (name, values) in enumerate(coverage.items()):
        if values.get(DECILES):
            colour = colours.get(name, CLASS_COLOURS[place % len(CLASS_COLOURS)])
            lines.append(
                Line(plots.set_name(name), values[DECILES], colour, yardstick=name in ("random", "ceiling"))
            )
    return lines


def _map(data: ReportData) -> dict[str, Any]:
    shown = shown_classes(data.classes, len(CLASS_COLOURS))
    found = feature_map(data, shown)
    names = {i: data.classes[i] for i in shown}
    return {
        "map": found,
        "map_classes": len(shown),
        "map_plot": plots.feature_map(found, names) if found else None,
    }


def _selection(data: ReportData) -> dict[str, Any]:
    """The plot, and how many classes took another subgroup than the one closest to their real images."""
    rows = plots.subgroup_rows(data.selection, data.classes)
    moved = sum(
        plots.chosen_distance(data.selection, name)
        > min(data.selection["per_class"][name]["distances_to_real"])
        for name in data.classes
    )
    return {"subgroups": plots.subgroups(data.selection, rows), "subgroup_rows": len(rows), "moved": moved}


def _last_metrics(data: ReportData) -> dict[str, float]:
    """The end of fine-tuning: mean of the last tenth of the log steps, by metric."""
    tail = data.history[-max(1, len(data.history) // 10) :]
    keys = dict.fromkeys(key for entry in tail for key in entry)
    values = {key: [entry[key] for entry in tail if key in entry] for key in keys}
    return {key: sum(found) / len(found) for key, found in values.items()}


def _sections(config: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """The configuration by section, with the dotted names that the command line takes; bare values first."""
    bare = {"run": _flat({key: value for key, value in config.items() if not isinstance(value, Mapping)}, "")}
    return bare | {
        key: _flat(value, f"{key}.") for key, value in config.items() if isinstance(value, Mapping)
    }


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows
