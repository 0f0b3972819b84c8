"""What a sweep found, as plain data: sweep.json and sweep.csv."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from ims3_ray.evaluation.protocols import protocols
from ims3_ray.evaluation.statistics import pareto_front
from ims3_ray.runs.records import FINISHED, TIME
from ims3_ray.stages.context import Context

from .plan import OBJECTIVES, Sweep
from .records import Trial
from .space import Value


class TrialRow(TypedDict):
    """What the document says of a trial: the record's, without what serves resuming."""

    number: int
    status: str
    values: Mapping[str, Value]
    metrics: Mapping[str, float]  # by objective; of a stopped trial, what was last heard of it
    interval: float | None  # half width at 95 % of the accuracy, over classifier seeds
    seconds: float | None
    error: str | None
    history: Sequence[Sequence[float]]
    pool: str | None
    mlflow_run_id: str | None


class Pool(TypedDict):
    """Candidates that trials chose from; `made` under this driver, or found complete."""

    fingerprint: str
    seconds: float
    trials: int
    images: int
    made: bool


class Document(TypedDict):
    """sweep.json: the trials by number, the best of each IPC, the front, and what the trials shared."""

    recipe: str
    key: str
    protocol: str
    split: str
    search: str
    scheduler: str | None
    objective: list[str]
    space: dict[str, dict]
    ipc: int
    classifier_seeds: int
    device: str
    trials_at_once: int
    seconds: float
    written: str
    trials: list[TrialRow]
    pools: list[Pool]
    upstream_seconds: float
    saved_seconds: float  # of the stages up to the candidates, had each trial run them alone
    best: dict[str, int]  # IPC, the smallest first → number of the trial
    pareto: list[int]


def describe(
    sweep: Sweep, context: Context, records: Sequence[Trial], made: set[str], seconds: float
) -> Document:
    """`context` is any trial's, `made` what this driver made (noun/fingerprint), `seconds` its time."""
    config = context.config
    rules = protocols(config.evaluate.protocol, config.evaluate.networks)[0]
    trials = [_row(record) for record in records]
    finished = [trial for trial in trials if trial["status"] == FINISHED]
    distinct = {name: seconds for record in records for name, seconds in record.upstream.items()}
    alone = sum(sum(record.upstream.values()) for record in records)
    return {
        "recipe": config.recipe,
        "key": sweep.key,
        "protocol": rules.label,
        "split": rules.split,
        "search": sweep.search,
        "scheduler": "asha" if sweep.asha else None,
        "objective": list(sweep.objective),
        "space": sweep.space.describe(),
        "ipc": sweep.base.ipc,
        "classifier_seeds": config.evaluate.seeds,
        "device": context.machine.device,
        "trials_at_once": context.machine.trials,
        "seconds": round(seconds, 3),
        "written": time.strftime(TIME, time.gmtime()),
        "trials": trials,
        "pools": _pools(records, made, context.num_candidates),
        "upstream_seconds": round(sum(distinct.values()), 3),
        "saved_seconds": round(alone - sum(distinct.values()), 3),
        "best": best_trials(finished, sweep.objective[0], sweep.base.ipc),
        "pareto": front_trials(finished, sweep.objective),
    }


def best_trials(finished: Sequence[TrialRow], objective: str, usual_ipc: int) -> dict[str, int]:
    """IPC, as text → number of the best trial; the earlier one where two are equal."""
    best: dict[int, TrialRow] = {}
    for trial in finished:
        ipc = trial["values"].get("ipc", usual_ipc)
        if ipc not in best or trial["metrics"][objective] > best[ipc]["metrics"][objective]:
            best[ipc] = trial
    return {str(ipc): best[ipc]["number"] for ipc in sorted(best)}


def front_trials(finished: Sequence[TrialRow], objectives: Sequence[str]) -> list[int]:
    """Numbers on the Pareto front, where there are several objectives."""
    if len(objectives) < 2 or not finished:
        return []
    figures = np.array([[trial["metrics"][name] for name in objectives] for trial in finished])
    return [finished[place]["number"] for place in pareto_front(figures)]


def trials_csv(document: Document) -> bytes:
    """A line a trial: number, status, its values, metrics, interval, seconds, error."""
    sink = io.StringIO()
    lines = csv.writer(sink, lineterminator="\n")
    fields, metrics = list(document["space"]), list(OBJECTIVES)
    lines.writerow(["trial", "status", *fields, *metrics, "interval", "seconds", "error"])
    for trial in document["trials"]:
        values = [_cell(trial["values"].get(field)) for field in fields]
        figures = [trial["metrics"].get(name) for name in metrics]
        rest = [*figures, trial["interval"], trial["seconds"], trial["error"]]
        lines.writerow([trial["number"], trial["status"], *values, *("" if v is None else v for v in rest)])
    return sink.getvalue().encode()


def _cell(value: Value) -> str | float:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _row(record: Trial) -> TrialRow:
    return {
        "number": record.number,
        "interval": record.interval,
        "error": record.error,
        "seconds": record.seconds,
        "pool": record.pool,
        "mlflow_run_id": record.mlflow_run_id,
        "status": record.state,
        "values": dict(record.values),
        "metrics": dict(record.metrics),
        "history": [list(look) for look in record.history],
    }


def _pools(records: Sequence[Trial], made: set[str], images: int) -> list[Pool]:
    """By first use."""
    pools: dict[str, Pool] = {}
    for record in records:
        if record.pool is not None:
            name = f"candidates/{record.pool}"
            pool = pools.setdefault(
                record.pool,
                {
                    "fingerprint": record.pool,
                    "seconds": 0.0,
                    "trials": 0,
                    "images": images,
                    "made": name in made,
                },
            )
            pool["trials"] += 1
            pool["seconds"] = record.upstream.get(name, pool["seconds"])
    return list(pools.values())
