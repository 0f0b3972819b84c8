"""Two runs side by side: what their recipes differ in, their figures, their images."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from ims3_ray.evaluation.results import NAMES
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.report.formatting import METRICS, duration, number, signed
from ims3_ray.report.inputs import PAGE_CLASSES, shown_classes
from ims3_ray.report.plots import set_name
from ims3_ray.runs import query, tags
from ims3_ray.runs.query import Differences, Run, metric_value

from . import thumbnails
from .run_store import Catalogue
from .run_table import NONE, accuracy, seconds
from .thumbnails import Strip


@dataclass(frozen=True)
class Pair:
    """A figure of both runs in words, and what the second has more."""

    name: str
    one: str | Markup
    other: str | Markup
    more: str = ""


def differences(one: Run, other: Run) -> Differences:
    """What differs in their recipes, versions and hardware, and in their metrics."""
    return query.differences(one, other, [stage.name for stage in STAGES] + [tags.ABLATION])


def are_comparable(one: Run, other: Run) -> bool:
    """Whether their accuracies are of the same protocol and images."""
    return (one["protocol"], one["scored"]) == (other["protocol"], other["scored"])


def figures(one: Run, other: Run) -> list[Pair]:
    """Accuracies by set in percent, coverage of the distilled sets, time; what neither has is left out."""
    pairs = [_accuracies(one, other, of_set) for of_set in ("distilled", *NAMES)]
    pairs += [_plain(one, other, title, f"{name}/distilled") for name, (title, _) in METRICS.items()]
    ours, theirs = (NONE if took is None else duration(took) for took in map(seconds, (one, other)))
    pairs.append(Pair("Time of its stages", ours, theirs))
    return [pair for pair in pairs if {pair.one, pair.other} != {NONE}]


def _accuracies(one: Run, other: Run, of_set: str) -> Pair:
    ours, theirs = (accuracy(run, of_set) for run in (one, other))
    both = isinstance(ours.by, float) and isinstance(theirs.by, float) and are_comparable(one, other)
    more = signed(float(theirs.by or 0) - float(ours.by or 0)) if both else ""
    return Pair(f"Accuracy, {set_name(of_set).lower()}", ours.shown, theirs.shown, more)


def _plain(one: Run, other: Run, title: str, name: str) -> Pair:
    ours, theirs = metric_value(one, name), metric_value(other, name)
    more = theirs - ours
    sign = "+" if more > 0 else ""
    one_shown, other_shown = (NONE if math.isnan(value) else number(value) for value in (ours, theirs))
    return Pair(title, one_shown, other_shown, "" if math.isnan(more) else f"{sign}{number(more)}")


def images(catalogue: Catalogue, one: Run, other: Run) -> list[tuple[str, Strip, Strip]]:
    """By class that either set has, evenly spaced of many, the images of both."""
    names = list(dict.fromkeys([*thumbnails.classes(catalogue, one), *thumbnails.classes(catalogue, other)]))
    shown = [names[place] for place in shown_classes(names, PAGE_CLASSES)]
    ours, theirs = (thumbnails.distilled(catalogue, run, shown, of=2) for run in (one, other))
    empty = [Strip(-1, name, [], 0, False) for name in shown]
    return list(zip(shown, ours or empty, theirs or empty, strict=True)) if ours or theirs else []
