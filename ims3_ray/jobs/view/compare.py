"""Compare two runs: fields that differ, metrics, images."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from ims3_ray.evaluation.results import SET_TITLES
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.report.formatting import METRICS, duration, number, signed
from ims3_ray.report.images import Strip
from ims3_ray.report.inputs import PAGE_CLASSES, shown_classes
from ims3_ray.report.plots import set_name
from ims3_ray.runs import query
from ims3_ray.runs.query import Differences, Run, metric_value

from . import thumbnails
from .run_store import RunStore
from .tables import NONE, accuracy, total_seconds


@dataclass(frozen=True)
class MetricPair:
    """A metric of both runs, and its difference (second minus first), as text."""

    name: str
    first: str | Markup
    second: str | Markup
    difference: str = ""


def differences(first: Run, second: Run) -> Differences:
    """Fields, versions, hardware and metrics that differ."""
    return query.differences(first, second, [stage.name for stage in STAGES])


def are_comparable(first: Run, second: Run) -> bool:
    """Whether the accuracies have the same protocol and images."""
    return (first["protocol"], first["scored"]) == (second["protocol"], second["scored"])


def metric_pairs(first: Run, second: Run) -> list[MetricPair]:
    """Accuracies by set in percent, coverage of the distilled sets, time; only what either run has."""
    pairs = [_accuracies(first, second, name) for name in ("distilled", *SET_TITLES)]
    pairs += [_metrics(first, second, title, f"{name}/distilled") for name, (title, _) in METRICS.items()]
    times = [NONE if t is None else duration(t) for t in map(total_seconds, (first, second))]
    pairs.append(MetricPair("Time of all stages", times[0], times[1]))
    return [pair for pair in pairs if {pair.first, pair.second} != {NONE}]


def _accuracies(first: Run, second: Run, name: str) -> MetricPair:
    a, b = accuracy(first, name), accuracy(second, name)
    difference = ""
    if isinstance(a.sort_key, float) and isinstance(b.sort_key, float) and are_comparable(first, second):
        difference = signed(b.sort_key - a.sort_key)
    return MetricPair(f"Accuracy, {set_name(name).lower()}", a.text, b.text, difference)


def _metrics(first: Run, second: Run, title: str, name: str) -> MetricPair:
    a, b = metric_value(first, name), metric_value(second, name)
    first_text, second_text = (NONE if math.isnan(value) else number(value) for value in (a, b))
    difference = "" if math.isnan(b - a) else f"{'+' if b > a else ''}{number(b - a)}"
    return MetricPair(title, first_text, second_text, difference)


def images(store: RunStore, first: Run, second: Run) -> list[tuple[str, Strip, Strip]]:
    """Images of both sets by class, for evenly spaced classes of either set."""
    names = list(dict.fromkeys([*thumbnails.classes(store, first), *thumbnails.classes(store, second)]))
    on_page = [names[label] for label in shown_classes(names, PAGE_CLASSES)]
    a, b = (thumbnails.distilled(store, run, on_page, lists=2) for run in (first, second))
    empty = [Strip(name, [], 0) for name in on_page]
    return list(zip(on_page, a or empty, b or empty, strict=True)) if a or b else []
