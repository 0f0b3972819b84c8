"""How far a run has come, in words: as its page shows it, and asks again while it goes."""

import calendar
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ims3_ray.display import noun, one_line
from ims3_ray.evaluation.results import CURVE
from ims3_ray.jobs.distill.status import BEGUN, COMPLETE, DAMAGED, describe_stage
from ims3_ray.report.formatting import count, duration
from ims3_ray.runs.event_log import read_events
from ims3_ray.runs.query import PLAIN_NAME, RUNNING, Run
from ims3_ray.runs.records import TIME

from .run_store import Catalogue
from .run_table import state_of, state_word

AT_WORK, TO_COME = "running", "to come"
STARTED, FINISHED = "stage started", "stage finished"  # events of a run's log
MOST_METRICS = 4


class StageRow(TypedDict):
    """A stage as a line of the table, in words; `state` is complete, running, begun, damaged or to come."""

    name: str
    state: str
    told: str
    rows: str
    seconds: str
    rate: str
    width: float  # of its bar, percent of the longest stage


class Progress(TypedDict):
    """`done`: the stages that are complete. `last`: what the run's log says last."""

    state: str
    told: str
    is_at_work: bool
    done: int
    stages: list[StageRow]
    last: str


def progress(catalogue: Catalogue, run: Run) -> Progress:
    """Of a run as its artefacts, its log and MLflow tell it now."""
    events = _events(catalogue, run)
    found = [describe_stage(catalogue.storage, *item) for item in catalogue.artifacts(run).items()]
    times = [_seconds(stage, run, events) for stage in found]
    longest = max((seconds for seconds in times if seconds), default=0.0)
    rows = [
        _row(stage, run, events, *pair) for stage, pair in zip(found, _widths(times, longest), strict=True)
    ]
    return Progress(
        state=state_word(run),
        told=state_of(catalogue, run),
        is_at_work=run["status"] == RUNNING,
        done=sum(stage["state"] == COMPLETE for stage in found),
        stages=rows,
        last=_last(events),
    )


def _events(catalogue: Catalogue, run: Run) -> list[dict[str, Any]]:
    name = run["name"]
    return read_events(catalogue.storage / "runs" / name) if PLAIN_NAME.fullmatch(name) else []


def _is_at_work(stage: Mapping[str, Any], run: Run) -> bool:
    return run["status"] == RUNNING and run["stage"] == stage["name"] and stage["state"] != COMPLETE


def _seconds(stage: Mapping[str, Any], run: Run, events: Sequence[Mapping[str, Any]]) -> float | None:
    """What a complete stage took, or how long one has been at work."""
    if not _is_at_work(stage, run):
        return stage.get("seconds")
    began = [event["time"] for event in events if _is(event, STARTED, stage["name"])]
    return time.time() - calendar.timegm(time.strptime(began[-1], TIME)) if began else None


def _widths(times: Sequence[float | None], longest: float) -> list[tuple[float | None, float]]:
    return [(seconds, 100 * (seconds or 0) / longest if longest else 0.0) for seconds in times]


def _row(
    stage: Mapping[str, Any], run: Run, events: Sequence[Mapping[str, Any]], took: float | None, width: float
) -> StageRow:
    name, state, told, rows, rate = stage["name"], stage["state"], "", "", ""
    if state == COMPLETE:
        rows = f"{count(stage['rows'])} {noun(stage['rows'], stage['unit'])}"
        rate = f"{stage['rate']:.3g} /s" if stage["rate"] < 100 else f"{count(stage['rate'])} /s"
        told = "complete" if any(_is(event, FINISHED, name) for event in events) else "found complete"
    elif _is_at_work(stage, run):
        parts = stage.get("parts")
        rows = f"{parts} {noun(parts, 'parts')} so far" if parts else ""
        state, told = AT_WORK, ", ".join(["at work", *_metrics(run, name)])
    elif state == DAMAGED:
        told = f"damaged: {stage['files']} {noun(stage['files'], 'files')}; the run's command mends it"
    elif state == BEGUN:
        told = f"begun, {stage['parts']} {noun(stage['parts'], 'parts')}"
    else:
        state = told = TO_COME
    words = "" if took is None else duration(took)
    return StageRow(
        name=name, state=state, told=told, rows=rows, seconds=words, rate=rate, width=round(width, 1)
    )


def _is(event: Mapping[str, Any], kind: str, stage: str) -> bool:
    return event["event"] == kind and event.get("stage") == stage


def _metrics(run: Run, stage: str) -> list[str]:
    """The last figures of a stage at work, as MLflow has them."""
    known = {
        name.rpartition("/")[2]: value
        for name, value in run["metrics"].items()
        if name.startswith(f"{stage}/") or (stage == "evaluate" and name == CURVE)
    }
    return [f"{name.replace('_', ' ')} {value:.3g}" for name, value in known.items()][:MOST_METRICS]


def _last(events: Sequence[Mapping[str, Any]]) -> str:
    if not events:
        return ""
    event = events[-1]
    more = [str(event[name]) for name in ("stage", "error") if name in event]
    return one_line(f"{event['time']} {event['event']}{': ' if more else ''}{', '.join(more)}")
