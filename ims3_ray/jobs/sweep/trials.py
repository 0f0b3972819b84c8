"""A sweep's document as its page reads it: trials with finite figures, and where each field's values lie
along an axis.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ims3_ray.report.inputs import shortened
from ims3_ray.report.wording import METRICS, value

ACCURACY, IPC, SUBGROUPS = "accuracy", "ipc", "sample.subgroups"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
LONGEST_VALUE = 36  # letters of a value in a table or a sentence
MOST_TOLD = 8  # IPCs that colours and marks can tell apart
MOST_NAMED = 3  # IPCs that the claim names, and that plots mark where there are too many to tell apart
MOST_LISTED = 12  # numbers that get evenly spaced places; more of them lie along an axis by size


@dataclass(frozen=True)
class Trial:
    """A setting of the swept fields and what came of it. Values and the error are untrusted text."""

    number: int
    status: str
    values: Mapping[str, Any]
    metrics: Mapping[str, float]
    """Finite ones alone; of a stopped trial, what was last heard of it."""
    interval: float | None
    """Half width at 95 % of the accuracy, over classifier seeds."""
    seconds: float | None
    error: str | None
    history: tuple[tuple[float, float], ...]
    """Steps and the running accuracy at each."""
    pool: str | None
    found: bool
    """Complete before this sweep began."""


@dataclass(frozen=True)
class Axis:
    """A swept field's values along an axis: evenly spaced where a few are listed, by size where they fill a
    range.
    """

    field: str
    listed: tuple[float | str, ...]
    """Keys of the values, in order (see `_key`); empty for a range."""
    labels: tuple[str, ...]
    low: float
    high: float
    is_log: bool
    is_number: bool

    def place(self, given: Any) -> float | None:
        """Where the value lies; None for one that the axis does not have."""
        if self.listed:
            return float(self.listed.index(_key(given))) if _key(given) in self.listed else None
        return float(given) if is_number(given) and (given > 0 or not self.is_log) else None

    def share(self, given: Any) -> float | None:
        """Place between the ends, 0 to 1, on the axis's own scale; the middle where the ends are one."""
        at, low, high = self.place(given), self.low, self.high
        if at is None or low == high:
            return None if at is None else 0.5
        return math.log(at / low) / math.log(high / low) if self.is_log else (at - low) / (high - low)


class Sweep:
    """The document's trials by what became of them, and its fields as axes."""

    def __init__(self, document: Mapping[str, Any]):
        self.document = document
        self.objectives: list[str] = list(document["objective"])
        self.objective = self.objectives[0]
        self.trials = [_trial(given) for given in document["trials"]]
        self.by_number = {trial.number: trial for trial in self.trials}
        self.axes = {field: _axis(field, spec, self.trials) for field, spec in document["space"].items()}

    @cached_property
    def finished(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status == FINISHED]

    @cached_property
    def scored(self) -> list[Trial]:
        """Finished ones with the first objective."""
        return [trial for trial in self.finished if self.objective in trial.metrics]

    @cached_property
    def best(self) -> dict[str, Trial]:
        """The best trial by IPC, as text, the smallest first."""
        found = {ipc: self.by_number[number] for ipc, number in document_best(self.document).items()}
        return {ipc: trial for ipc, trial in found.items() if self.objective in trial.metrics}

    @cached_property
    def marked(self) -> set[int]:
        """Numbers of the best trials that plots mark: of each IPC, or of the largest where there are many."""
        best = list(self.best.values())
        return {trial.number for trial in (best if len(best) <= MOST_TOLD else best[-MOST_NAMED:])}

    @cached_property
    def ipcs(self) -> list[Any]:
        """IPCs that trials have, the smallest first; empty where none is swept."""
        found = {trial.values[IPC] for trial in self.trials if is_number(trial.values.get(IPC))}
        return sorted(found) if IPC in self.axes else []

    @cached_property
    def scored_ipcs(self) -> list[Any]:
        """Those of them that have a finished trial with a figure."""
        return [ipc for ipc in self.ipcs if any(trial.values.get(IPC) == ipc for trial in self.scored)]

    def status_count(self, status: str) -> int:
        return sum(trial.status == status for trial in self.trials)

    def score(self, trial: Trial) -> float:
        return trial.metrics[self.objective]

    def interval(self, trial: Trial) -> float | None:
        """Of the first objective: known for the accuracy alone."""
        return trial.interval if self.objective == ACCURACY else None

    def within_interval(self, best: Trial) -> int | None:
        """Other finished trials of the same IPC that lie no lower than the best one's interval reaches."""
        interval = self.interval(best)
        if interval is None:
            return None
        rivals = [
            t for t in self.scored if t.values.get(IPC) == best.values.get(IPC) and t.number != best.number
        ]
        return sum(self.score(trial) >= self.score(best) - interval for trial in rivals)

    def metric_names(self) -> list[str]:
        """Objectives first, then the others in the order of the run report's table."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.metrics)
        order = [*self.objectives, ACCURACY, *METRICS, *names]
        return [name for name in dict.fromkeys(order) if name in names or name in self.objectives]


def document_best(document: Mapping[str, Any]) -> dict[str, int]:
    return dict(sorted(document["best"].items(), key=lambda item: (len(item[0]), item[0])))


def metric_name(name: str) -> str:
    return METRICS[name][0] if name in METRICS else name.replace("_", " ").capitalize()


def is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def setting(trial: Trial, leave_out: Sequence[str] = ()) -> str:
    """`select.alpha=0.3, ipc=10`, numbers at four digits."""
    shown = [(field, given) for field, given in trial.values.items() if field not in leave_out]
    return ", ".join(f"{field}={shortened(short(given), LONGEST_VALUE)}" for field, given in shown)


def short(given: Any) -> str:
    """As in YAML, numbers at four digits."""
    if isinstance(given, list | tuple):
        return f"[{', '.join(map(short, given))}]"
    return f"{given:.4g}" if isinstance(given, float) else value(given)


def _key(given: Any) -> float | str:
    """What values that mean the same have in common: 1 and 1.0, but not true."""
    return float(given) if is_number(given) else value(given)


def _trial(given: Mapping[str, Any]) -> Trial:
    history = tuple(
        (step, score) for step, score in given.get("history") or () if is_number(step) and is_number(score)
    )
    return Trial(
        number=given["number"],
        status=given["status"],
        values=given["values"],
        metrics={name: found for name, found in (given.get("metrics") or {}).items() if is_number(found)},
        interval=_finite(given.get("interval")),
        seconds=_finite(given.get("seconds")),
        error=given.get("error"),
        history=history,
        pool=given.get("pool"),
        found=bool(given.get("found")),
    )


def _finite(given: Any) -> float | None:
    return given if is_number(given) else None


def _axis(field: str, spec: Mapping[str, Any], trials: Sequence[Trial]) -> Axis:
    """Of the values that the space names and those that trials had; listed numbers are put in order."""
    had = [trial.values[field] for trial in trials if field in trial.values]
    if "values" not in spec:
        return _range(field, [spec["low"], spec["high"], *had], is_log=bool(spec.get("log")))
    known = [*spec["values"], *had]
    are_numbers = all(map(is_number, known))
    if are_numbers and len(set(known)) > MOST_LISTED:
        return _range(field, known)
    labels = {_key(one): short(one) for one in (sorted(known) if are_numbers else known)}
    return Axis(
        field,
        tuple(labels),
        tuple(labels.values()),
        0,
        max(0, len(labels) - 1),
        is_log=False,
        is_number=are_numbers,
    )


def _range(field: str, known: Iterable[Any], *, is_log: bool = False) -> Axis:
    numbers = [one for one in known if is_number(one)]
    is_log = is_log and min(numbers) > 0
    return Axis(field, (), (), min(numbers), max(numbers), is_log, is_number=True)
