"""What a sweep found, as plain data: sweep.json and sweep.csv."""

import csv
import io
import json
import shlex
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from ims3_ray.config.load import subject
from ims3_ray.display import redact
from ims3_ray.evaluation.protocols import get_protocols
from ims3_ray.evaluation.statistics import pareto_front
from ims3_ray.runs.records import FINISHED, now
from ims3_ray.runs.tags import OBJECTIVES
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .plan import Sweep
from .trial_state import Trial

# of a record
ROW = ("number", "values", "metrics", "interval", "seconds", "error", "history", "pool", "mlflow_run_id")


class Pool(TypedDict):
    """Candidates that trials chose from; `made` under this driver, or found complete."""

    fingerprint: str
    seconds: float
    trials: int
    images: int
    made: bool


class Document(TypedDict):
    """sweep.json: the trials by number, the best of each IPC, the front, and what the trials shared."""

    title: str  # its recipe, or the images that stand in place of the recipe's
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
    trials: list[dict[str, Any]]  # ROW of each record, its state as `status`
    pools: list[Pool]
    upstream_seconds: float
    saved_seconds: float  # of the stages up to the candidates, had each trial run them alone
    best: dict[str, int]  # IPC, the smallest first → number of the trial
    commands: dict[str, str]  # IPC → what runs its best trial on the test images
    pareto: list[int]


def describe(
    sweep: Sweep, context: Context, folder: Directory, trials: Sequence[Trial], made: set[str], seconds: float
) -> Document:
    """`context` is any trial's, `made` what this driver made (noun/fingerprint), `seconds` its time."""
    config = context.config
    rules = get_protocols(config.evaluate.protocol, config.evaluate.networks)[0]
    finished = [trial for trial in trials if trial.state == FINISHED]
    distinct = {name: seconds for trial in trials for name, seconds in trial.upstream.items()}
    alone = sum(sum(trial.upstream.values()) for trial in trials)
    best = best_trials(finished, sweep.objective[0], sweep.base.ipc)
    return {
        "title": subject(config),
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
        "written": now(),
        "trials": [{"status": t.state} | {name: getattr(t, name) for name in ROW} for t in trials],
        "pools": _pools(trials, made, context.num_candidates),
        "upstream_seconds": round(sum(distinct.values()), 3),
        "saved_seconds": round(alone - sum(distinct.values()), 3),
        "best": best,
        "commands": {ipc: _command(folder / winner_file(ipc), context.storage) for ipc in best},
        "pareto": front_trials(finished, sweep.objective),
    }


def winner_file(ipc: str) -> str:
    """The recipe of the best trial, below the sweep's folder."""
    return f"best-ipc{ipc}.yaml"


def _command(recipe: Directory, storage: Directory) -> str:
    """It finds what the trial made, from wherever it is given."""
    return redact(shlex.join(["python", "jobs/distill.py", "--recipe", recipe.uri, f"storage={storage.uri}"]))


def best_trials(finished: Sequence[Trial], objective: str, usual_ipc: int) -> dict[str, int]:
    """IPC, as text → number of the best trial; the earlier one where two are equal."""
    best: dict[int, Trial] = {}
    for trial in finished:
        ipc = trial.values.get("ipc", usual_ipc)
        if ipc not in best or trial.metrics[objective] > best[ipc].metrics[objective]:
            best[ipc] = trial
    return {str(ipc): best[ipc].number for ipc in sorted(best)}


def front_trials(finished: Sequence[Trial], objectives: Sequence[str]) -> list[int]:
    """Numbers on the Pareto front, where there are several objectives."""
    if len(objectives) < 2 or not finished:
        return []
    figures = np.array([[trial.metrics[name] for name in objectives] for trial in finished])
    return [finished[place].number for place in pareto_front(figures)]


def trials_csv(document: Document) -> bytes:
    """A line a trial: number, status, its values, metrics, interval, seconds, error."""
    sink = io.StringIO()
    lines = csv.writer(sink, lineterminator="\n")
    fields, rest = list(document["space"]), ["interval", "seconds", "error"]
    lines.writerow(["trial", "status", *fields, *OBJECTIVES, *rest])
    for trial in document["trials"]:
        values = [trial["values"].get(field) for field in fields]
        texts = [v if isinstance(v, str | int | float) else json.dumps(v) for v in values]
        figures = [*(trial["metrics"].get(name) for name in OBJECTIVES), *(trial[name] for name in rest)]
        lines.writerow([trial["number"], trial["status"], *texts, *figures])  # None is an empty cell
    return sink.getvalue().encode()


def _pools(trials: Sequence[Trial], made: set[str], images: int) -> list[Pool]:
    """By first use."""
    pools: dict[str, Pool] = {}
    for trial in trials:
        if trial.pool:
            name = f"candidates/{trial.pool}"
            new = Pool(fingerprint=trial.pool, seconds=0.0, trials=0, images=images, made=name in made)
            pool = pools.setdefault(trial.pool, new)
            pool["trials"] += 1
            pool["seconds"] = trial.upstream.get(name, pool["seconds"])
    return list(pools.values())
