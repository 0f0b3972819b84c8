"""What a sweep found, as plain data: sweep.json and sweep.csv."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ims3_ray.evaluation.pareto import pareto_front
from ims3_ray.evaluation.protocols import protocols
from ims3_ray.stages.context import Context

from .plan import OBJECTIVES, Sweep
from .records import FINISHED, Trial

CANDIDATES = "candidates/"


def describe(
    sweep: Sweep, context: Context, records: Sequence[Trial], made: set[str], seconds: float
) -> dict[str, Any]:
    """sweep.json: the trials by number, the best of each IPC, the front, and what the trials shared.

    `context` is that of any trial, `made` what was made under this driver (noun/fingerprint), `seconds` its
    time.
    """
    config = context.config
    rules = protocols(config.evaluate.protocol, config.evaluate.networks)[0]
    trials = [_trial(record) for record in records]
    done = [place for place, trial in enumerate(trials) if trial["status"] == FINISHED]
    figures = np.array([[trials[place]["metrics"][name] for name in sweep.objective] for place in done])
    front = (
        [trials[done[row]]["number"] for row in pareto_front(figures)]
        if len(sweep.objective) > 1 and done
        else []
    )
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
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "trials": trials,
        "pools": _pools(records, made, config.sample.subgroups * config.pool_ipc * len(context.classes)),
        "upstream_seconds": round(sum(_distinct(records).values()), 3),
        "saved_seconds": _saved(records),
        "best": _best(sweep, trials, done),
        "pareto": front,
    }


def best_places(document: Mapping[str, Any]) -> dict[str, int]:
    """IPC → place, in the list of trials, of its best one."""
    place_of = {trial["number"]: place for place, trial in enumerate(document["trials"])}
    return {ipc: place_of[number] for ipc, number in document["best"].items()}


def trials_csv(document: Mapping[str, Any]) -> bytes:
    """A line a trial: number, status, its values, metrics, interval, seconds, error."""
    sink = io.StringIO()
    lines = csv.writer(sink, lineterminator="\n")
    fields, metrics = list(document["space"]), list(OBJECTIVES)
    lines.writerow(["trial", "status", *fields, *metrics, "interval", "seconds", "error"])
    for trial in document["trials"]:
        values = [_cell(trial["values"].get(field)) for field in fields]
        found = [trial["metrics"].get(name, "") for name in metrics]
        rest = [trial["interval"], trial["seconds"], trial["error"]]
        lines.writerow(
            [trial["number"], trial["status"], *values, *found, *("" if v is None else v for v in rest)]
        )
    return sink.getvalue().encode()


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _trial(record: Trial) -> dict[str, Any]:
    kept = ("number", "interval", "error", "seconds", "pool", "mlflow_run_id")
    return {name: getattr(record, name) for name in kept} | {
        "status": record.state,
        "values": dict(record.values),
        "metrics": dict(record.metrics),
        "history": [list(look) for look in record.history],
    }


def _best(sweep: Sweep, trials: Sequence[Mapping[str, Any]], done: Sequence[int]) -> dict[str, int]:
    """IPC, as text → number of the trial that is best in the first objective; the earlier one where two are
    equal.
    """
    best: dict[int, Mapping[str, Any]] = {}
    name = sweep.objective[0]
    for place in done:
        trial = trials[place]
        ipc = trial["values"].get("ipc", sweep.base.ipc)
        if ipc not in best or trial["metrics"][name] > best[ipc]["metrics"][name]:
            best[ipc] = trial
    return {str(ipc): best[ipc]["number"] for ipc in sorted(best)}


def _pools(records: Sequence[Trial], made: set[str], images: int) -> list[dict[str, Any]]:
    """The candidates that the trials chose from, by first use."""
    pools: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.pool is None:
            continue
        name = CANDIDATES + record.pool
        known = {
            "fingerprint": record.pool,
            "seconds": 0.0,
            "trials": 0,
            "images": images,
            "made": name in made,
        }
        pool = pools.setdefault(record.pool, known)
        pool["trials"] += 1
        pool["seconds"] = record.upstream.get(name, pool["seconds"])
    return list(pools.values())


def _saved(records: Sequence[Trial]) -> float:
    """Seconds of the stages up to the candidates, had each trial run them alone, over those of the distinct
    ones.
    """
    alone = sum(sum(record.upstream.values()) for record in records)
    return round(alone - sum(_distinct(records).values()), 3)


def _distinct(records: Sequence[Trial]) -> dict[str, float]:
    """Seconds of every artefact up to the candidates, each once."""
    return {name: seconds for record in records for name, seconds in record.upstream.items()}
