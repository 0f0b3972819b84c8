"""Rows of the list of runs, and of the stages of one run, as display text."""

import calendar
import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from markupsafe import Markup

from ims3_ray.config.data import Data
from ims3_ray.config.load import subject
from ims3_ray.config.settings import Config
from ims3_ray.display import noun, one_line
from ims3_ray.jobs.distill.status import BEGUN, COMPLETE, DAMAGED, describe_stage
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.report.formatting import count, duration, percent, points
from ims3_ray.runs.event_log import read_events
from ims3_ray.runs.query import DEAD, PLAIN_NAME, RUNNING, Run, metric_value
from ims3_ray.runs.records import TIME
from ims3_ray.storage.artifacts import MANIFEST

from .run_store import RunStore

STATES = {"FINISHED": "complete", RUNNING: "running", DEAD: "dead", "FAILED": "failed", "KILLED": "stopped"}
NONE = "–"
NUMERIC_COLUMNS = ("IPC", "Accuracy", "Random real", "Time")
STARTED, FINISHED = "stage started", "stage finished"  # events of a run's log
MAX_METRICS = 4


@dataclass(frozen=True)
class Cell:
    """Display text, and the number or text to sort by; None sorts last."""

    text: str | Markup
    sort_key: float | str | None
    note: str = ""  # small, below the text


@dataclass(frozen=True)
class RunRow:
    """A run in the list, with its cells by column title."""

    run: Run
    state: str
    cells: dict[str, Cell]


def run_rows(store: RunStore, runs: Sequence[Run]) -> list[RunRow]:
    """One row per run, in order."""
    return [_run_row(store, run) for run in runs]


def _run_row(store: RunStore, run: Run) -> RunRow:
    recipe, ipc, state = run["params"].get("recipe", NONE), metric_value(run, "ipc"), state_text(store, run)
    seconds, data = total_seconds(run), _subject(recipe, run["params"].get("data.train"))
    cells = {
        "Recipe": Cell(recipe, recipe),
        "Data": Cell(data, data),
        "IPC": Cell(NONE, None) if math.isnan(ipc) else Cell(f"{ipc:.0f}", ipc),
        "State": Cell(state, state),
        "Accuracy": accuracy(run, "distilled", note=run["protocol"] or ""),
        "Random real": accuracy(run, "random"),
        "Time": Cell(NONE, None) if seconds is None else Cell(duration(seconds), seconds),
        "Started (UTC)": Cell(run["start_time"][:16].replace("T", " "), run["start_time"]),
    }
    return RunRow(run, state_of(run), cells)


def accuracy(run: Run, name: str, note: str = "") -> Cell:
    """Accuracy after the last step on the run's set `name`, with the interval of its mean."""
    mean, interval = (metric_value(run, f"accuracy/{name}/{part}") for part in ("last", "last_interval"))
    if math.isnan(mean):
        return Cell(NONE, None)
    spread = "" if math.isnan(interval) else points(interval, " ± ")
    return Cell(percent(mean) + spread, mean, note)


def state_of(run: Run) -> str:
    return STATES.get(run["status"], run["status"].lower())


def state_text(store: RunStore, run: Run) -> str:
    """The state; of a running or dead run also its stage and the number of complete stages."""
    state = state_of(run)
    if run["status"] not in (RUNNING, DEAD):
        return state
    artifacts = store.artifacts(run).values()
    done = sum(store.storage.exists(f"{artifact}/{MANIFEST}") for artifact in artifacts)
    share = f"{done} of {len(artifacts)} stages" if artifacts else ""
    return ", ".join(part for part in (f"{state}: {run['stage']}" if run["stage"] else state, share) if part)


def total_seconds(run: Run) -> float | None:
    """Total seconds of the run's stages, also of those that an earlier run made; None if none is known."""
    times = [metric_value(run, f"{stage.name}/seconds") for stage in STAGES]
    measured = [seconds for seconds in times if not math.isnan(seconds)]
    return sum(measured) if measured else None


@functools.cache
def _subject(recipe: str, train: str | None) -> str:
    """The subject of a run, from its recipe's name and its training images."""
    data = Data.model_construct(train=train)
    return subject(Config.model_construct(recipe=recipe, data=data)) if train else recipe


class StageRow(TypedDict):
    """A stage in the table; `state` is complete, running, begun, damaged or to come."""

    name: str
    state: str
    detail: str
    rows: str
    seconds: str
    rate: str
    width: float  # of its bar, percent of the longest stage


class Progress(TypedDict):
    """Progress of a run; `last` is the last line of its log."""

    state: str
    text: str
    stages: list[StageRow]
    last: str


def progress(store: RunStore, run: Run) -> Progress:
    """Current progress from the run's artefacts, log and MLflow."""
    name = run["name"]
    events = read_events(store.storage / "runs" / name) if PLAIN_NAME.fullmatch(name) else []
    stages = [describe_stage(store.storage, *item) for item in store.artifacts(run).items()]
    times = [_seconds(stage, run, events) for stage in stages]
    longest = max((seconds for seconds in times if seconds), default=0.0)
    return Progress(
        state=state_of(run),
        text=state_text(store, run),
        stages=[
            _stage_row(stage, run, events, seconds, 100 * (seconds or 0) / longest if longest else 0.0)
            for stage, seconds in zip(stages, times, strict=True)
        ],
        last=_last_line(events),
    )


def _is_running(stage: Mapping[str, Any], run: Run) -> bool:
    return run["status"] == RUNNING and run["stage"] == stage["name"] and stage["state"] != COMPLETE


def _seconds(stage: Mapping[str, Any], run: Run, events: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of a complete stage, or seconds since a running one started."""
    if not _is_running(stage, run):
        return stage.get("seconds")
    starts = [event["time"] for event in events if _is(event, STARTED, stage["name"])]
    return time.time() - calendar.timegm(time.strptime(starts[-1], TIME)) if starts else None


def _stage_row(
    stage: Mapping[str, Any],
    run: Run,
    events: Sequence[Mapping[str, Any]],
    seconds: float | None,
    width: float,
) -> StageRow:
    name, state, detail, rows, rate = stage["name"], stage["state"], "", "", ""
    if state == COMPLETE:
        rows = f"{count(stage['rows'])} {noun(stage['rows'], stage['unit'])}"
        rate = f"{stage['rate']:.3g} /s" if stage["rate"] < 100 else f"{count(stage['rate'])} /s"
        is_made = not events or any(_is(event, FINISHED, name) for event in events)  # as trials
        detail = "complete" if is_made else "reused"
    elif _is_running(stage, run):
        parts = stage.get("parts")
        rows = f"{parts} {noun(parts, 'parts')} so far" if parts else ""
        state, detail = "running", ", ".join(["running", *_metrics(run, name)])
    elif state == DAMAGED:
        detail = f"damaged: {stage['files']} {noun(stage['files'], 'files')}; run the command again to repair"
    elif state == BEGUN:
        detail = f"incomplete, {stage['parts']} {noun(stage['parts'], 'parts')}"
    else:
        state = detail = "to come"
    time_text = "" if seconds is None else duration(seconds)
    return StageRow(
        name=name, state=state, detail=detail, rows=rows, seconds=time_text, rate=rate, width=round(width, 1)
    )


def _is(event: Mapping[str, Any], kind: str, stage: str) -> bool:
    return event["event"] == kind and event.get("stage") == stage


def _metrics(run: Run, stage: str) -> list[str]:
    metrics = {
        name.rpartition("/")[2]: value
        for name, value in run["metrics"].items()
        if name.startswith(f"{stage}/")
    }
    return [f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items()][:MAX_METRICS]


def _last_line(events: Sequence[Mapping[str, Any]]) -> str:
    if not events:
        return ""
    event = events[-1]
    details = [str(event[name]) for name in ("stage", "error") if name in event]
    return one_line(f"{event['time']} {event['event']}{': ' if details else ''}{', '.join(details)}")
