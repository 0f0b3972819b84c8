"""Rebuild MLflow's runs from the records of a storage.

A distillation gets its parameters, tags, metrics per stage, recipe, report and dataset. Sweeps and
trials are not rebuilt; their results are in `sweeps/`.
"""

import calendar
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ims3_ray.errors import InputError, OutageError
from ims3_ray.evaluation.results import CURVE, mean_curve
from ims3_ray.jobs.distill.recorder import log_outputs, log_stage
from ims3_ray.pipeline.steps import STAGES, Step
from ims3_ray.runs import records, tags
from ims3_ray.runs.event_log import read_events
from ims3_ray.runs.mlflow_tracker import Tracker
from ims3_ray.storage.artifacts import FINGERPRINT, DamagedError, Directory, open_directory, read_manifest

SERVER = "MLFLOW_TRACKING_URI"


def record_names(storage: Directory) -> list[str]:
    """Return the names of the runs with a record."""
    return [name for name in (storage / "runs").folders() if storage.exists(f"runs/{name}/run.json")]


def rebuild(
    storage: Directory, tracked: Directory, print_line: Callable[[str], None], *, with_files: bool = True
) -> tuple[int, int]:
    """Write the records of `storage` to the MLflow of `tracked`; returns (written, skipped) runs.

    Runs that are finished in MLflow stay unchanged. An unreadable record is skipped with a warning.
    """
    written = skipped = 0
    for name in record_names(storage):
        try:
            record = storage.read_json(f"runs/{name}/run.json")
            written += _write_run(storage, name, record, Tracker(tracked, print_line, dict), with_files)
        except OutageError:
            raise
        except (InputError, LookupError, TypeError, AttributeError, ValueError) as error:
            skipped += 1
            print_line(f"warning: runs/{name} is skipped: its record is unreadable ({error})")
    return written, skipped


@contextlib.contextmanager
def records_as_mlflow(
    storage: Directory, print_line: Callable[[str], None]
) -> Iterator[Callable[[], Directory]]:
    """Provide a temporary MLflow database of the records during the block; each call updates it."""
    server = os.environ.pop(SERVER, None)
    try:
        with tempfile.TemporaryDirectory(prefix="ims3-") as folder:
            tracked = open_directory(folder)

            def refresh() -> Directory:
                rebuild(storage, tracked, print_line, with_files=False)
                return tracked

            yield refresh
    finally:
        if server is not None:
            os.environ[SERVER] = server


def _write_run(
    storage: Directory, name: str, record: Mapping[str, Any], tracker: Tracker, with_files: bool
) -> bool:
    steps = _steps(storage, record)
    params = records.recipe_of(record["config"])
    run_tags = record["tags"] | tags.artifact_tags(map(records.artifact_name, record["artifacts"].values()))
    began, ended = _times(storage / "runs" / name, record)
    tracker.start(record["key"], name, params, run_tags, began=began)
    if tracker.is_finished:
        return False
    for step in steps.values():
        log_stage(tracker, step)
    if "evaluation" in steps:
        document = steps["evaluation"].directory.read_json("evaluation.json")
        for number, accuracy in mean_curve(document["sets"]["distilled"]["curves"]):
            tracker.log(number, {f"evaluate/{CURVE}": accuracy})
    if with_files:
        tracker.log_recipe(params)
        if {"distilled", "report"} <= set(steps):
            log_outputs(tracker, steps["distilled"], steps["report"])
    if status := records.STATUS.get(record["state"]):
        tracker.finish(status, patient=False, ended=ended)
    return True


def _steps(storage: Directory, record: Mapping[str, Any]) -> dict[str, Step]:
    """Return the complete stages of a run by output; the storage may have moved since."""
    places, steps = record["artifacts"], {}
    for stage in STAGES:
        name = records.artifact_name(places.get(stage.output, "")).rpartition("/")[2]
        if FINGERPRINT.fullmatch(name):
            directory = storage / stage.output / name
            with contextlib.suppress(DamagedError):
                if manifest := read_manifest(directory):
                    steps[stage.output] = Step(stage, directory, {}, manifest, {})
    return steps


def _times(folder: Directory, record: Mapping[str, Any]) -> tuple[float, float]:
    """Return start and end of the run, by its log or else its record."""
    events = [event["time"] for event in read_events(folder)] or [record["written"]]
    began, ended = (calendar.timegm(time.strptime(text, records.TIME)) for text in (events[0], events[-1]))
    return began, ended
