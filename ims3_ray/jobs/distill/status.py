"""`--status`: the state of a run, read from its storage; needs no cluster and no running driver."""

from typing import Any, TypedDict

from ims3_ray.config.settings import Config
from ims3_ray.display import align_columns, noun
from ims3_ray.runs import plan_cache, records
from ims3_ray.runs.event_log import LOG, read_events
from ims3_ray.storage.artifacts import (
    DamagedError,
    Directory,
    check_format,
    fingerprint,
    open_directory,
    read_manifest,
    summary_of,
)
from ims3_ray.storage.lease import read_heartbeat

COMPLETE, BEGUN, MISSING, DAMAGED = "complete", "begun", "missing", "damaged"


class Status(TypedDict):
    """The answer of --status. A `dead` run has left no heartbeat for a while; the same command resumes it."""

    run: str
    state: str  # not started, running, dead, failed, stopped or finished
    seconds_since_alive: float | None
    last_event: dict[str, Any] | None
    log: str
    stages: list[dict[str, Any]]


def read_status(config: Config) -> Status:
    """Return the states of the run and its stages, and its last event. Raises InputError for damage."""
    storage = open_directory(config.storage)
    cached = plan_cache.find(storage, config) if check_format(storage) else None
    run, steps = (cached["run"], cached["steps"]) if cached else _plan(config, storage)
    folder, place = storage / "runs" / run, f"runs/{run}/run.json"
    heartbeat, events = read_heartbeat(folder), read_events(folder)
    state = records.read_one(storage, place).state if storage.exists(place) else "not started"
    if state == records.RUNNING and (heartbeat is None or heartbeat.is_stale):
        state = "dead"
    return {
        "run": run.rpartition("-")[2],
        "state": state,
        "seconds_since_alive": heartbeat.age if heartbeat else None,
        "last_event": events[-1] if events else None,
        "log": (folder / LOG).uri,
        "stages": [describe_stage(storage, name, artifact) for name, artifact in steps],
    }


def _plan(config: Config, storage: Directory) -> tuple[str, list[tuple[str, str]]]:
    """Return the run's name, and the artefact of each stage.

    If it has not started, takes the same configuration's run on another device: GPUs may be elsewhere.
    """
    from ims3_ray.cluster.resources import expect_gpu, find_machine  # takes seconds
    from ims3_ray.pipeline.prepare import prepare
    from ims3_ray.pipeline.steps import plan

    machine = find_machine(expect_gpu(config.workers), wait=False)
    steps, key = plan(prepare(config, machine)), fingerprint(config.identity())
    name = f"{config.recipe}-{steps[-1].fingerprint}"
    found = (storage / "runs").folders()
    for run in found if name not in found else []:
        record = storage.read_json(place) if storage.exists(place := f"runs/{run}/run.json") else {}
        if record.get("config_fingerprint") == key and record.get("device", machine.device) != machine.device:
            return run, [(stage, artifact) for stage, artifact in record["steps"]]
    return name, [(step.stage.name, step.artifact) for step in steps]


def describe_stage(storage: Directory, name: str, artifact: str) -> dict[str, Any]:
    """Return a stage's state, with its summary if complete, or the number of its parts so far."""
    stage: dict[str, object] = {"name": name, "artifact": artifact}
    try:
        if manifest := read_manifest(storage / artifact):
            return {**stage, "state": COMPLETE, **summary_of(manifest)}
    except DamagedError as error:
        return {**stage, "state": DAMAGED, "files": len(error.files), "damage": error.files}
    files = (storage / artifact).files()
    parts = sum(name.endswith(".parquet") for name in files)
    return {**stage, "state": BEGUN if files else MISSING, "parts": parts}


def status_lines(status: Status) -> list[str]:
    """The lines of --status."""
    age, state = status["seconds_since_alive"], status["state"]
    seen = "" if age is None or state not in ("running", "dead") else f", last heartbeat {age:.0f} s ago"
    lines = [f"run {status['run']}: {state}{seen}"]
    rows = []
    for stage in status["stages"]:
        work = ["", "", ""]
        if stage["state"] == COMPLETE:
            unit = noun(stage["rows"], stage["unit"])
            work = [str(stage["rows"]), unit, f"{stage['seconds']:.1f} s"]
        elif stage["state"] == BEGUN:
            work = [str(stage["parts"]), noun(stage["parts"], "parts"), ""]
        elif stage["state"] == DAMAGED:
            work = [str(stage["files"]), noun(stage["files"], "files"), ""]
        rows.append([stage["name"], stage["state"], *work, stage["artifact"]])
    lines += align_columns(rows, left=(0, 1, 3, 5), indent=2)
    if event := status["last_event"]:
        hidden = ("time", "event", "notes")
        details = ", ".join(f"{name} {value}" for name, value in event.items() if name not in hidden)
        lines.append(f"last     {event['time']} {event['event']}{': ' if details else ''}{details}")
    if state in ("dead", "failed", "stopped"):
        lines.append("the same command, without --status, resumes it")
    return [*lines, f"log      {status['log']}"]
