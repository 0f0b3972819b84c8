"""Search, compare and rank runs in MLflow: functions from a client to plain data."""

import difflib
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.lease import is_dead

from . import tags
from .event_log import read_events
from .mlflow_db import DATABASE
from .mlflow_tracker import EXPERIMENT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

PAGE = 1000
RUNNING, DEAD = "RUNNING", "DEAD"  # DEAD is no status of MLflow
PLAIN_NAME = re.compile(r"[^./\\\0-\x1f][^/\\\0-\x1f]*")  # others can write to a tracking server
COMPARED_TAGS = (*tags.ENVIRONMENT, tags.KIND, tags.PROTOCOL, tags.SCORED)


class Run(TypedDict):
    run_id: str
    name: str
    key: str | None
    kind: str
    protocol: str | None
    scored: str | None
    status: str  # MLflow's, or DEAD
    stage: str | None  # current stage of a running run, last stage of a dead one
    start_time: str  # ISO 8601, UTC
    end_time: str | None  # None while running, although MLflow keeps an earlier driver's
    parent: str | None
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class BestRun(TypedDict):
    """The best run per IPC of one protocol and set of scored images."""

    protocol: str
    scored: str
    ipc: str
    value: float
    run: Run


Differences = dict[str, dict[str, list[object]]]  # kind → name → both values


def find_runs(client: "MlflowClient", conditions: str = "") -> list[Run]:
    """Return all runs that meet `conditions` (MLflow's filter language), newest first."""
    return [_plain(run) for run in _search(client, conditions)]


def with_live_status(storage: Directory, runs: Sequence[Run]) -> list[Run]:
    """Add the stage to RUNNING runs, and set those without a recent heartbeat to DEAD.

    A trial has the heartbeat of its sweep. Runs of another storage stay unchanged.
    """
    return [_live_status(storage, run) if run["status"] == RUNNING else run for run in runs]


def _live_status(storage: Directory, run: Run) -> Run:
    name = run["name"]
    place = f"runs/{name}"
    if run["kind"] == tags.SWEEP:
        place = f"sweeps/{name.removeprefix('sweep-')}"
    elif run["kind"] == tags.TRIAL:
        place = f"sweeps/{name.rpartition('-')[0]}"
    if not PLAIN_NAME.fullmatch(name) or not storage.has_directory(place):
        return run
    folder = storage / place
    stages = [event["stage"] for event in read_events(folder) if "stage" in event]
    return {**run, "status": DEAD if is_dead(folder) else RUNNING, "stage": stages[-1] if stages else None}


def resolve(runs: Sequence[Run], text: str) -> Run:
    """Return the run with this key, MLflow id or name, or with this unique prefix of its key.

    Raises InputError, listing candidates, if there is none or more than one.
    """
    matches = (
        [run for run in runs if text in (run["key"], run["run_id"])]
        or [run for run in runs if text == run["name"]]
        or [run for run in runs if text and (run["key"] or "").startswith(text)]
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f"{text!r}: names {len(matches)} runs; give a key or an MLflow id: {_candidates(matches)}"
        )
    runs_by_name = {name: run for run in runs for name in (run["name"], run["key"]) if name}
    near = [
        runs_by_name[name] for name in difflib.get_close_matches(text, runs_by_name, n=3, cutoff=0.4)
    ] or runs[:3]
    raise InputError(
        f"{text!r}: is no run's key, name or MLflow id; known are, for example: {_candidates(near) or 'none'}"
    )


def metric_value(run: Run, name: str) -> float:
    """Return a metric or a numeric parameter, NaN if missing; a minus before the name is ignored."""
    name = name.removeprefix("-")
    try:
        return float(run["metrics"].get(name, run["params"].get(name, "")))
    except ValueError:
        return math.nan


def sort_value(run: Run, name: str) -> float:
    """Return the metric's value, negated if the name has a minus: larger is better."""
    return metric_value(run, name) * (-1 if name.startswith("-") else 1)


def sort_best_first(runs: Sequence[Run], name: str) -> list[Run]:
    """Sort by a metric, runs without it last."""
    return sorted(runs, key=lambda run: (math.isnan(sort_value(run, name)), -sort_value(run, name)))


def check_metrics(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Raise InputError, listing known metrics, for a metric that no run has."""
    for name in names:
        if runs and all(math.isnan(metric_value(run, name)) for run in runs):
            metrics = sorted({metric for run in runs for metric in run["metrics"]})
            hints = [f"did you mean {near}? " for near in difflib.get_close_matches(name, metrics, n=1)]
            raise InputError(
                f"{name}: no run has this metric; {''.join(hints)}known here: {', '.join(metrics) or 'none'}"
            )


def best_runs(runs: Sequence[Run], metric: str) -> list[BestRun]:
    """Return the best run by `metric` per protocol, scored images and IPC; the first of equal runs."""
    best: dict[tuple[str, str, str], Run] = {}
    for run in sort_best_first(runs, metric):
        if not math.isnan(metric_value(run, metric)):
            key = run["protocol"] or "", run["scored"] or "", run["params"].get("ipc", "")
            best.setdefault(key, run)

    def order(key: tuple[str, str, str]) -> tuple[str, str, bool, int]:
        protocol, scored, ipc = key
        return protocol, scored, not ipc.isdecimal(), int(ipc) if ipc.isdecimal() else 0

    return [
        BestRun(protocol=key[0], scored=key[1], ipc=key[2], value=metric_value(run, metric), run=run)
        for key, run in sorted(best.items(), key=lambda item: order(item[0]))
    ]


def objectives(sweep: Run) -> list[str]:
    """Return the metrics that a sweep maximises."""
    names = sweep["params"].get(tags.OBJECTIVE, "accuracy").split(",")
    return [tags.OBJECTIVES.get(name, name) for name in names]


def swept_fields(sweep: Run, trials: Sequence[Run]) -> list[str]:
    """Return the swept parameters; of a section that is swept as a whole, those that differ."""
    spaces = [name.removeprefix(tags.SPACE) for name in sweep["params"] if name.startswith(tags.SPACE)]
    names = sorted({name for trial in trials for name in trial["params"]})

    def differs(name: str) -> bool:
        return len({trial["params"].get(name) for trial in trials}) > 1

    return [
        name
        for field in sorted(spaces)
        for name in names
        if name == field or (name.startswith(f"{field}.") and differs(name))
    ]


def differences(one: Run, other: Run, stages: Collection[str]) -> Differences:
    """Return differing parameters, tags of versions and hardware, and metrics except those of `stages`."""

    def differing(ours: Mapping[str, object], theirs: Mapping[str, object]) -> dict[str, list[object]]:
        pairs = {name: [ours.get(name), theirs.get(name)] for name in sorted({**ours, **theirs})}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    tag_pairs = differing(one["tags"], other["tags"])
    metrics = differing(one["metrics"], other["metrics"])
    return {
        "params": differing(one["params"], other["params"]),
        "tags": {name: pair for name, pair in tag_pairs.items() if name.startswith(COMPARED_TAGS)},
        "metrics": {name: pair for name, pair in metrics.items() if name.split("/")[0] not in stages},
    }


def logged_file(client: "MlflowClient", run_id: str, name: str) -> bytes | None:
    """Return the logged file `name`, or None."""
    if name not in {artifact.path for artifact in client.list_artifacts(run_id)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, name, folder)).read_bytes()


def has_tracking(storage: Directory) -> bool:
    """Whether there can be runs: a server is set, or there is a database. Connecting would create one."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or not storage.is_local or storage.exists(DATABASE)


def _search(client: "MlflowClient", conditions: str) -> Iterator["MlflowRun"]:
    order = ["attributes.start_time DESC"]
    experiment, token = client.get_experiment_by_name(EXPERIMENT), None
    while experiment:
        page = client.search_runs(
            [experiment.experiment_id], conditions, max_results=PAGE, order_by=order, page_token=token
        )
        yield from page
        if not (token := page.token):
            return


def _plain(run: "MlflowRun") -> Run:
    params, run_tags = dict(run.data.params), dict(run.data.tags)
    protocol = run_tags.get(tags.PROTOCOL)
    split = "validation" if "-val" in (protocol or "") else "test"
    return Run(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        key=run_tags.get(tags.RUN),
        kind=run_tags.get(tags.KIND, tags.DISTILLATION),
        protocol=protocol,
        scored=run_tags.get(tags.SCORED) or params.get(f"data.{split}"),
        status=run.info.status,
        stage=None,
        start_time=_iso(run.info.start_time),
        end_time=_iso(run.info.end_time) if run.info.end_time and run.info.status != RUNNING else None,
        parent=run_tags.get(tags.PARENT),
        params=params,
        metrics=dict(run.data.metrics),
        tags=run_tags,
    )


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _candidates(runs: Sequence[Run]) -> str:
    names = (f"{run['name']} (key {run['key']}, MLflow id {run['run_id']})" for run in runs)
    return first_few(names, show=str)
