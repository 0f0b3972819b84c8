"""Render a run's report as one self-contained HTML page, without scripts or external resources."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from ims3_ray.config.base import flatten
from ims3_ray.evaluation.results import Evaluation, sort_sets
from ims3_ray.storage.schemas import SelectionFile

from . import plots
from .coverage_plots import by_decile
from .feature_space import feature_map
from .formatting import METRICS, claim, environment
from .images import is_enlarged, strips, uncovered_strips
from .inputs import MAP_CLASSES, History, ReportData, shown_classes
from .svg import INK


def render(data: ReportData) -> bytes:
    """The page in UTF-8, deterministic. Raises OSError for bytes that are not an image."""
    data = replace(data, evaluation=_in_order(data.evaluation)) if data.evaluation else data
    map_classes = shown_classes(data.classes, MAP_CLASSES)
    points = feature_map(data, map_classes)
    context = {
        "data": data,
        "images": sum(data.counts),
        "per_class": "–".join(map(str, dict.fromkeys((min(data.counts), max(data.counts))))),
        "claim": claim(data.evaluation),
        "set_name": partial(plots.set_name, names=_names(data.evaluation)),
        "strips": strips(data),
        "small": is_enlarged(data.contact[data.classes[0]]["distilled"][0]),
        "uncovered": uncovered_strips(data),
        **(_evaluation(data.evaluation) if data.evaluation else {"curves": None}),
        "map": points,
        "map_classes": len(map_classes),
        "map_plot": points and plots.feature_map(points, {i: data.classes[i] for i in map_classes}),
        "finetuning": plots.losses(data.history, "fine-tuning"),
        "refinement": plots.losses(data.refinement, "refinement"),
        "history": _last_metrics(data.history),
        **(_selection(data.selection, data.classes) if data.selection else {}),
        "seconds": sum(stage["seconds"] for stage in data.stages),
        "slowest": max((stage["seconds"] for stage in data.stages), default=0),
        "config": _sections(data.config),
    }
    return environment().get_template("page.html").render(context).encode()


def _selection(selection: SelectionFile, classes: Sequence[str]) -> dict[str, object]:
    rows, per_class = plots.subgroup_rows(selection, classes), selection["per_class"].values()
    return {
        "subgroups": plots.subgroups(selection, rows),
        "subgroup_rows": len(rows),
        "moved": sum(c["distance_to_real"] > min(c["distances_to_real"]) for c in per_class),
    }


def _evaluation(evaluation: Evaluation) -> dict[str, object]:
    sets, coverage, names = evaluation["sets"], evaluation["coverage"], _names(evaluation)
    metrics = [name for name in METRICS if any(name in values for values in coverage.values())]
    full = sets["full"]["last"]["mean"] if "full" in sets and "distilled" in sets else 0
    return {
        "accuracy": plots.accuracy(sets, names),
        "curves": plots.learning_curves(sets, names),
        "metrics": [(*METRICS[name], [values.get(name) for values in coverage.values()]) for name in metrics],
        "deciles": by_decile(
            coverage, partial(plots.set_name, names=names), plots.SET_COLOURS | {"ceiling": INK}
        ),
        "share": sets["distilled"]["last"]["mean"] / full if full else None,
    }


def _in_order(evaluation: Evaluation) -> Evaluation:
    sets, coverage = sort_sets(evaluation["sets"]), sort_sets(evaluation["coverage"])
    return {**evaluation, "sets": sets, "coverage": coverage}


def _names(evaluation: Evaluation | None) -> Mapping[str, str]:
    return evaluation.get("names", {}) if evaluation else {}


def _last_metrics(history: History) -> dict[str, float]:
    """Means of the last tenth of the log steps, by metric."""
    tail = history[-max(1, len(history) // 10) :]
    keys = dict.fromkeys(key for entry in tail for key in entry)
    values = {key: [entry[key] for entry in tail if key in entry] for key in keys}
    return {key: sum(series) / len(series) for key, series in values.items()}


def _sections(config: Mapping[str, object]) -> dict[str, list[tuple[str, object]]]:
    """The configuration by section, with dotted field names; top-level fields first."""
    sections = {"run": [item for item in config.items() if not isinstance(item[1], Mapping)]}
    inner = {name: section for name, section in config.items() if isinstance(section, Mapping)}
    return sections | {name: list(flatten(inner[name], f"{name}.").items()) for name in inner}
