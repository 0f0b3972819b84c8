"""Questions about runs, over MLflow's own search: plain functions that take an MlflowClient and give plain
dicts.

A run is {run_id, name, key, kind, protocol, scored, status, start_time, parent, params, metrics, tags}.
"""

import difflib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ims3_ray.errors import InputError
from ims3_ray.evaluation.pareto import pareto_front
from ims3_ray.storage.artifacts import Directory

from . import tags as run_tags
from .tracking import EXPERIMENT

Run = dict[str, Any]
PAGE = 1000
STAGE_METRICS = (
    "encode",
    "invert",
    "finetune",
    "embed",
    "sample",
    "select",
    "export",
    "evaluate",
    "report",
    "ablation",
)
COMPARED_TAGS = ("version.", "hardware.", run_tags.KIND, run_tags.PROTOCOL, run_tags.SCORED)


def find(client: Any, conditions: str = "", order: str = "start_time") -> list[Run]:
    """All runs that meet `conditions`, in MLflow's filter language; by `order`: newest first, or a metric,
    best first.

    A metric with a minus before it is best where it is smallest.
    """
    by = "attributes.start_time DESC"
    if order != "start_time":
        by = f"metrics.`{order[1:]}` ASC" if order.startswith("-") else f"metrics.`{order}` DESC"
    return [_plain(found) for found in _search(client, conditions, [by])]


def last_deleted(client: Any) -> dict[str, float]:
    """By the key of every run that was deleted, and of which none is left: when the last of them began, Unix
    seconds.
    """
    left = {run["key"] for run in find(client)}
    began: dict[str, float] = {}
    for found in _search(client, "", [], is_deleted=True):
        key = found.data.tags.get(run_tags.RUN)
        if key is not None and key not in left:
            began[key] = max(began.get(key, 0.0), found.info.start_time / 1000)
    return began


def resolve(runs: Sequence[Run], text: str) -> Run:
    """The run that `text` names: its key, MLflow id or name, or a beginning of its key that no other has.

    InputError, naming candidates, for none or several.
    """
    for names in (("key", "run_id"), ("name",)):
        if found := [run for run in runs if text in [run[name] for name in names]]:
            break
    else:
        found = [run for run in runs if text and (run["key"] or "").startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{text!r}: names {len(found)} runs; give one's key or MLflow id: {_candidates(found)}"
        )
    known = {name: run for run in runs for name in (run["name"], run["key"]) if name}
    near = [known[name] for name in difflib.get_close_matches(text, known, n=3, cutoff=0.4)] or list(runs[:3])
    raise InputError(
        f"{text!r}: is no run's key, name or MLflow id; there are, for example: {_candidates(near) or 'none'}"
    )


def figure(run: Run, name: str) -> float:
    """A metric, or a parameter that is a number, of a run; larger is better, so negated after a minus. NaN
    where missing.
    """
    plain = name.removeprefix("-")
    value = run["metrics"].get(plain, run["params"].get(plain))
    try:
        return float(value) * (-1 if name.startswith("-") else 1)
    except (TypeError, ValueError):
        return math.nan


def check_figures(runs: Sequence[Run], names: Sequence[str]) -> None:
    """InputError for a name that no run has a figure of, with those that are known."""
    for name in names:
        if runs and all(math.isnan(figure(run, name)) for run in runs):
            known = sorted({metric for run in runs for metric in run["metrics"]})
            first = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {first[0]}? " if first else ""
            raise InputError(
                f"{name}: no run has this metric; {hint}known here: {', '.join(known) or 'none'}"
            )


def groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs whose accuracies can be compared, by protocol and scored images."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run["protocol"] or "", run["scored"] or ""), []).append(run)
    return dict(sorted(found.items()))


def best(runs: Sequence[Run], metric: str) -> list[dict[str, Any]]:
    """The best run by `metric` for every protocol, scored images and IPC: [{protocol, scored, ipc, value,
    run}, …].
    """
    found = []
    for (protocol, scored), comparable in groups(runs).items():
        by_ipc: dict[str, Run] = {}
        for run in comparable:
            ipc, value = run["params"].get("ipc", ""), figure(run, metric)
            if not math.isnan(value) and (ipc not in by_ipc or value > figure(by_ipc[ipc], metric)):
                by_ipc[ipc] = run
        for ipc in sorted(by_ipc, key=lambda text: (not text.isdigit(), int(text) if text.isdigit() else 0)):
            value = logged(by_ipc[ipc], metric)
            found.append(
                {"protocol": protocol, "scored": scored, "ipc": ipc, "value": value, "run": by_ipc[ipc]}
            )
    return found


def logged(run: Run, name: str) -> float:
    """The figure as it was logged, whichever way is better."""
    return figure(run, name.removeprefix("-"))


def fronts(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """The Pareto front of every protocol and scored images: [{protocol, scored, runs}, …], best first by the
    first name.
    """
    found = []
    for (protocol, scored), comparable in groups(runs).items():
        rows = pareto_front(np.array([[figure(run, name) for name in names] for run in comparable]))
        if rows:
            found.append({"protocol": protocol, "scored": scored, "runs": [comparable[row] for row in rows]})
    return found


def differences(one: Run, other: Run) -> dict[str, dict[str, list[Any]]]:
    """What differs: parameters, tags of versions and hardware, headline metrics, each {name: [one's,
    other's]}.
    """

    def differing(kind: str, is_compared: Callable[[str], bool]) -> dict[str, list[Any]]:
        names = sorted(name for name in {**one[kind], **other[kind]} if is_compared(name))
        pairs = {name: [one[kind].get(name), other[kind].get(name)] for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    return {
        "params": differing("params", lambda name: True),
        "tags": differing("tags", lambda name: name.startswith(COMPARED_TAGS)),
        "metrics": differing("metrics", lambda name: name.split("/")[0] not in STAGE_METRICS),
    }


def logged_file(client: Any, run_id: str, name: str) -> bytes | None:
    """The file `name` that the run logged, or None for a run that did not."""
    if name not in {artifact.path for artifact in client.list_artifacts(run_id)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, name, folder)).read_bytes()


def has_tracking(storage: Directory) -> bool:
    """Whether there can be runs: a tracking server is named, or the storage holds a database. Asking would
    make one.
    """
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or not storage.is_local or storage.exists("mlflow.db")


def _search(client: Any, conditions: str, order: list[str], is_deleted: bool = False) -> Iterator[Any]:
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(EXPERIMENT)
    view = ViewType.DELETED_ONLY if is_deleted else ViewType.ACTIVE_ONLY
    token = None
    while experiment:
        page = client.search_runs([experiment.experiment_id], conditions, view, PAGE, order, token)
        yield from page
        if not (token := page.token):
            return


def _plain(found: Any) -> Run:
    params, tags = dict(found.data.params), dict(found.data.tags)
    protocol = tags.get(run_tags.PROTOCOL) or params.get("protocol") or params.get("evaluate.protocol")
    split = "validation" if "-val" in (protocol or "") else "test"
    return {
        "run_id": found.info.run_id,
        "name": found.info.run_name,
        "key": tags.get(run_tags.RUN),
        "kind": tags.get(run_tags.KIND, run_tags.DISTILLATION),  # runs of earlier versions have no kind
        "protocol": protocol,
        "scored": tags.get(run_tags.SCORED) or params.get(f"data.{split}"),
        "status": found.info.status,
        "start_time": datetime.fromtimestamp(found.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        "parent": tags.get(run_tags.PARENT),
        "params": params,
        "metrics": dict(found.data.metrics),
        "tags": tags,
    }


def _candidates(runs: Sequence[Run]) -> str:
    named = ", ".join(f"{run['name']} (key {run['key']}, MLflow id {run['run_id']})" for run in runs[:5])
    return named + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
