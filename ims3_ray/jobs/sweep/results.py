"""The results of a sweep as plain data: sweep.json and sweep.csv."""

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

from .comparison import RowsDocument
from .plan import RowSweep, Sweep
from .trial import Trial

# fields of a trial's record
FIELDS = ("number", "values", "metrics", "interval", "seconds", "error", "history", "pool", "mlflow_run_id")


class Pool(TypedDict):
    """Candidates that trials chose from."""

    fingerprint: str
    seconds: float
    trials: int


class Document(TypedDict):
    """sweep.json."""

    title: str  # the recipe's name, or the images' if they are not the recipe's
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
    trials: list[dict[str, Any]]  # FIELDS of each record, its state as `status`
    pools: list[Pool]
    saved_seconds: float  # further time up to the candidates if each trial had made its own
    best: dict[str, int]  # IPC, ascending → number of the trial; empty for a comparison
    commands: dict[str, str]  # IPC → command that runs its best trial on the test images
    pareto: list[int]
    comparison: RowsDocument | None  # None for a search, and if a trial failed


def describe_sweep(
    sweep: Sweep, context: Context, folder: Directory, trials: Sequence[Trial], seconds: float
) -> Document:
    """sweep.json without the comparison. `context` is any trial's, `seconds` the driver's time."""
    config = context.config
    rules = get_protocols(config.evaluate.protocol, config.evaluate.networks)[0]
    finished = [trial for trial in trials if trial.state == FINISHED]
    distinct = {name: seconds for trial in trials for name, seconds in trial.upstream.items()}
    separate = sum(sum(trial.upstream.values()) for trial in trials)
    chosen = [] if isinstance(sweep, RowSweep) else finished  # scores on test images choose nothing
    best = best_trials(chosen, sweep.objective[0], sweep.base.ipc)
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
        "trials": [{"status": t.state} | {name: getattr(t, name) for name in FIELDS} for t in trials],
        "pools": _pools(trials),
        "saved_seconds": round(separate - sum(distinct.values()), 3),
        "best": best,
        "commands": {ipc: _command(folder / winner_file(ipc), context.storage) for ipc in best},
        "pareto": front_trials(chosen, sweep.objective),
        "comparison": None,
    }


def as_trials(document: Document) -> list[Trial]:
    """The trials of sweep.json, as far as it has their records."""
    return [Trial(state=t["status"], **{name: t[name] for name in FIELDS}) for t in document["trials"]]


def winner_file(ipc: str) -> str:
    """The file of the best trial's recipe, below the sweep's folder."""
    return f"best-ipc{ipc}.yaml"


def _command(recipe: Directory, storage: Directory) -> str:
    words = ["ims3", "distill", "--recipe", recipe.uri, f"storage={storage.uri}"]
    return redact(shlex.join(words))


def best_trials(finished: Sequence[Trial], objective: str, default_ipc: int) -> dict[str, int]:
    """IPC, as text → number of the best trial; of equal ones the earliest."""
    best: dict[int, Trial] = {}
    for trial in finished:
        ipc = trial.values.get("ipc", default_ipc)
        if ipc not in best or trial.metrics[objective] > best[ipc].metrics[objective]:
            best[ipc] = trial
    return {str(ipc): best[ipc].number for ipc in sorted(best)}


def front_trials(finished: Sequence[Trial], objectives: Sequence[str]) -> list[int]:
    """Numbers of the trials on the Pareto front of several objectives."""
    if len(objectives) < 2 or not finished:
        return []
    metrics = np.array([[trial.metrics[name] for name in objectives] for trial in finished])
    return [finished[index].number for index in pareto_front(metrics)]


def trials_csv(document: Document) -> bytes:
    """A line per trial: number, status, its values, metrics, interval, seconds, error."""
    sink = io.StringIO()
    lines = csv.writer(sink, lineterminator="\n")
    fields, rest = list(document["space"]), ["interval", "seconds", "error"]
    lines.writerow(["trial", "status", *fields, *OBJECTIVES, *rest])
    for trial in document["trials"]:
        values = [trial["values"].get(field) for field in fields]
        texts = [v if isinstance(v, str | int | float) else json.dumps(v) for v in values]
        metrics = [*(trial["metrics"].get(name) for name in OBJECTIVES), *(trial[name] for name in rest)]
        lines.writerow([trial["number"], trial["status"], *texts, *metrics])  # None is an empty cell
    return sink.getvalue().encode()


def _pools(trials: Sequence[Trial]) -> list[Pool]:
    """The pools in order of first use."""
    pools: dict[str, Pool] = {}
    for trial in trials:
        if trial.pool:
            seconds = trial.upstream.get(f"candidates/{trial.pool}", 0.0)
            pool = pools.setdefault(trial.pool, Pool(fingerprint=trial.pool, seconds=seconds, trials=0))
            pool["trials"] += 1
    return list(pools.values())
