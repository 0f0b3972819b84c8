"""A sweep as its page reads it: what became of the trials, and each field's values as an axis."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

from ims3_ray.report.formatting import METRICS, value
from ims3_ray.report.inputs import shortened
from ims3_ray.runs.records import FINISHED
from ims3_ray.runs.tags import OBJECTIVES

from .document import Document
from .trial_state import Trial

ACCURACY, IPC, SUBGROUPS = "accuracy", "ipc", "sample.subgroups"
LONGEST_VALUE = 36  # letters of a value in a table or a sentence
MOST_TOLD = 8  # IPCs that colours can tell apart
MOST_NAMED = 3  # IPCs that the claim names
MOST_LISTED = 12  # numbers that get evenly spaced places; more of them lie along an axis by size


@dataclass(frozen=True)
class Axis:
    """A swept field's values: evenly spaced where a few are listed, by size where they fill a range."""

    field: str
    labels: dict[float | str, str]  # of the listed values, in order, by `_key`; empty for a range
    low: float
    high: float
    is_log: bool
    is_number: bool

    def place(self, item: object) -> float | None:
        """Where the value lies; None for one that the axis does not have."""
        if self.labels:
            return float(list(self.labels).index(_key(item))) if _key(item) in self.labels else None
        return float(item) if is_number(item) and (item > 0 or not self.is_log) else None

    def share(self, item: object) -> float | None:
        """Place between the ends, 0 to 1, on the axis's own scale; the middle where the ends are one."""
        at, low, high = self.place(item), self.low, self.high
        if at is None or low == high:
            return None if at is None else 0.5
        return math.log(at / low) / math.log(high / low) if self.is_log else (at - low) / (high - low)


class Results:
    """The trials by what became of them, and the swept fields as axes. Values and errors are untrusted."""

    def __init__(self, document: Document, trials: Sequence[Trial]):
        self.document = document
        self.objectives = document["objective"]
        self.objective = self.objectives[0]
        self.trials = trials
        self.by_number = {trial.number: trial for trial in self.trials}
        self.axes = {field: _axis(field, spec, self.trials) for field, spec in document["space"].items()}

    @cached_property
    def finished(self) -> list[Trial]:
        """They have all objectives: a trial that lacks one fails."""
        return [trial for trial in self.trials if trial.state == FINISHED]

    @cached_property
    def best(self) -> dict[str, Trial]:
        """The best trial by IPC, as text, the smallest first."""
        return {ipc: self.by_number[number] for ipc, number in self.document["best"].items()}

    @cached_property
    def ipcs(self) -> list[float]:
        """IPCs that trials have, the smallest first; empty where none is swept."""
        return sorted({ipc for ipc in map(ipc_of, self.trials) if is_number(ipc)}) if IPC in self.axes else []

    @cached_property
    def finished_ipcs(self) -> list[float]:
        """Those of them that have a finished trial."""
        finished = set(map(ipc_of, self.finished))
        return [ipc for ipc in self.ipcs if ipc in finished]

    def count(self, status: str) -> int:
        return sum(trial.state == status for trial in self.trials)

    def score(self, trial: Trial) -> float:
        return trial.metrics[self.objective]

    def in_words(self, score: float, unit: str = "") -> str:
        """The accuracy in percent, with the unit; other objectives plain."""
        return f"{100 * score:.1f}{unit}" if self.objective == ACCURACY else f"{score:.3f}"

    def interval(self, trial: Trial) -> float | None:
        """Of the first objective: known for the accuracy alone."""
        return trial.interval if self.objective == ACCURACY else None

    def rivals(self, best: Trial) -> int | None:
        """Other finished trials of the same IPC that lie no lower than the best one's interval reaches."""
        interval = self.interval(best)
        if interval is None:
            return None
        least, ipc = self.score(best) - interval, ipc_of(best)
        others = (trial for trial in self.finished if trial.number != best.number)
        return sum(ipc_of(trial) == ipc and self.score(trial) >= least for trial in others)

    def metric_names(self) -> list[str]:
        """Objectives first, then what else trials report."""
        known = {name for trial in self.trials for name in trial.metrics}
        others = [name for name in OBJECTIVES if name in known and name not in self.objectives]
        return [*self.objectives, *others]


def ipc_of(trial: Trial) -> object:
    """None where it is not swept."""
    return trial.values.get(IPC)


def metric_name(name: str) -> str:
    return METRICS[name][0] if name in METRICS else name.replace("_", " ").capitalize()


def is_number(item: object) -> TypeGuard[float]:
    return isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)


def setting(trial: Trial, leave_out: Collection[str] = ()) -> str:
    """`select.alpha=0.3, ipc=10`, numbers at four digits."""
    shown = [(field, item) for field, item in trial.values.items() if field not in leave_out]
    return ", ".join(f"{field}={shortened(short(item), LONGEST_VALUE)}" for field, item in shown)


def short(item: object) -> str:
    """As in YAML, numbers at four digits."""
    if isinstance(item, list | tuple):
        return f"[{', '.join(map(short, item))}]"
    return f"{item:.4g}" if isinstance(item, float) else value(item)


def _key(item: object) -> float | str:
    """What values that mean the same have in common: 1 and 1.0, but not true."""
    return float(item) if is_number(item) else value(item)


def _axis(field: str, spec: dict, trials: Sequence[Trial]) -> Axis:
    """Of the values that the space names and those that trials had; listed numbers are put in order."""
    values = [trial.values[field] for trial in trials if field in trial.values]
    values = [*spec.get("values", ()), *values]
    are_numbers = all(map(is_number, values))
    if "values" not in spec or (are_numbers and len(set(values)) > MOST_LISTED):
        ends = [spec[end] for end in ("low", "high") if end in spec]
        numbers = [one for one in (*ends, *values) if is_number(one)]
        is_log = bool(spec.get("log")) and min(numbers) > 0
        return Axis(field, {}, min(numbers), max(numbers), is_log, is_number=True)
    labels = {_key(one): short(one) for one in (sorted(values) if are_numbers else values)}
    return Axis(field, labels, 0, max(0, len(labels) - 1), is_log=False, is_number=are_numbers)
