"""Where a run stands, read off its storage: no cluster is needed, and the run need not be there any more."""

from typing import Any

from ims3_ray.cluster.machine import find_machine
from ims3_ray.config.settings import Config
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import Step, plan
from ims3_ray.runs import records
from ims3_ray.runs.journal import DEAD_AFTER_S, LOG, read_log, seconds_since_alive
from ims3_ray.storage.artifacts import part_names

COMPLETE, BEGUN, MISSING = "complete", "begun", "missing"


def status(config: Config) -> dict[str, Any]:
    """State of the run (`not started`, `running`, `dead`, `failed`, `stopped`, `finished`) and of its stages,
    its last event.

    `dead` is a run that says that it runs and has left no sign of life for a while: the same command goes on
    with it.
    """
    steps = plan(context := prepare(config, find_machine(config.workers, wait=False)))
    folder = context.storage / "runs" / f"{config.recipe}-{steps[-1].fingerprint}"
    record = folder.read_json("run.json") if folder.exists("run.json") else None
    age, log = seconds_since_alive(folder), read_log(folder)
    state = record.get("state", records.FINISHED) if record else "not started"
    if state == records.RUNNING and (age is None or age > DEAD_AFTER_S):
        state = "dead"
    return {
        "run": steps[-1].fingerprint,
        "state": state,
        "seconds_since_alive": age,
        "last_event": log[-1] if log else None,
        "log": (folder / LOG).uri,
        "stages": [_stage(step) for step in steps],
    }


def _stage(step: Step) -> dict[str, Any]:
    told = {"name": step.stage.name, "artifact": f"{step.stage.noun}/{step.fingerprint}"}
    if step.manifest:
        return (
            told
            | {"state": COMPLETE}
            | {name: step.manifest[name] for name in ("rows", "unit", "seconds", "rate")}
        )
    parts = part_names(step.directory)
    return told | {"state": BEGUN if parts or step.directory.files() else MISSING, "parts": len(parts)}
