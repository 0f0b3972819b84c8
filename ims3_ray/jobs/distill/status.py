"""Where a run stands, read off its storage: no cluster is needed, and the run need not be there any more."""

from typing import Any, TypedDict

from ims3_ray.config.settings import Config
from ims3_ray.display import noun
from ims3_ray.errors import InputError
from ims3_ray.runs import plan_cache, records
from ims3_ray.runs.event_log import LOG, read_events
from ims3_ray.storage.artifacts import (
    DamagedError,
    Directory,
    check_format,
    open_directory,
    read_manifest,
    summary_of,
)
from ims3_ray.storage.lease import read_heartbeat

COMPLETE, BEGUN, MISSING, DAMAGED = "complete", "begun", "missing", "damaged"


class Status(TypedDict):
    """`dead` says that it runs and left no heartbeat for a while: the same command goes on with it."""

    run: str
    state: str  # not started, running, dead, failed, stopped or finished
    seconds_since_alive: float | None
    last_event: dict[str, Any] | None
    log: str
    stages: list[dict[str, Any]]


def read_status(config: Config) -> Status:
    """State of the run and of its stages, and its last event."""
    storage = open_directory(config.storage)
    receipt = plan_cache.find(storage, config) if check_format(storage) else None
    run, steps = (receipt["run"], receipt["steps"]) if receipt else _plan(config)
    folder = storage / "runs" / run
    last, log = read_heartbeat(folder), read_events(folder)
    state = _state(folder)
    if state == records.RUNNING and (last is None or last.is_stale):
        state = "dead"
    return {
        "run": run.rpartition("-")[2],
        "state": state,
        "seconds_since_alive": last.age if last else None,
        "last_event": log[-1] if log else None,
        "log": (folder / LOG).uri,
        "stages": [describe_stage(storage, name, artifact) for name, artifact in steps],
    }


def _plan(config: Config) -> tuple[str, list[tuple[str, str]]]:
    """The run's name, and by stage where its artefacts belong."""
    from ims3_ray.cluster.resources import find_machine  # seconds to import
    from ims3_ray.pipeline.prepare import prepare
    from ims3_ray.pipeline.steps import plan

    steps = plan(prepare(config, find_machine(config.workers, wait=False)))
    return f"{config.recipe}-{steps[-1].fingerprint}", [(step.stage.name, step.artifact) for step in steps]


def _state(folder: Directory) -> str:
    """As the run's record says it; InputError where that is damaged."""
    if not folder.exists("run.json"):
        return "not started"
    try:
        return folder.read_json("run.json").get("state", records.FINISHED)
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"storage: {(folder / 'run.json').uri} is no readable record ({error}); the same command, "
            "without --status, writes it anew"
        ) from error


def describe_stage(storage: Directory, name: str, artifact: str) -> dict[str, Any]:
    """State of a stage whose artefact belongs at `artifact`, and what it came to, or its parts so far."""
    line: dict[str, object] = {"name": name, "artifact": artifact}
    try:
        if manifest := read_manifest(storage / artifact):
            return {**line, "state": COMPLETE, **summary_of(manifest)}
    except DamagedError as error:
        return {**line, "state": DAMAGED, "files": len(error.files), "damage": error.files}
    files = (storage / artifact).files()
    parts = sum(name.endswith(".parquet") for name in files)
    return {**line, "state": BEGUN if files else MISSING, "parts": parts}


def status_lines(status: Status) -> list[str]:
    """What --status prints."""
    age, state = status["seconds_since_alive"], status["state"]
    seen = "" if age is None or state not in ("running", "dead") else f", last heartbeat {age:.0f} s ago"
    lines = [f"run {status['run']}: {state}{seen}"]
    for stage in status["stages"]:
        more = ""
        if stage["state"] == COMPLETE:
            more = f"{stage['rows']:>8} {noun(stage['rows'], stage['unit']):<12}{stage['seconds']:>9.1f} s"
        elif stage["state"] == BEGUN:
            more = f"{stage['parts']:>8} parts"
        elif stage["state"] == DAMAGED:
            more = f"{stage['files']:>8} files"
        lines.append(f"  {stage['name']:<10}{stage['state']:<10}{more:<32}  {stage['artifact']}")
    if event := status["last_event"]:
        hidden = ("time", "event", "notes")
        details = ", ".join(f"{name} {value}" for name, value in event.items() if name not in hidden)
        lines.append(f"last     {event['time']} {event['event']}{': ' if details else ''}{details}")
    if state in ("dead", "failed", "stopped"):
        lines.append("the same command, without --status, goes on with it")
    return [*lines, f"log      {status['log']}"]
