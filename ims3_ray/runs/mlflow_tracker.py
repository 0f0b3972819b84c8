"""Write a run to MLflow: only the driver does, and finds an existing run by its tag.

Errors of the tracking server never stop a run.
"""

import contextlib
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ims3_ray.config.base import flatten
from ims3_ray.display import one_line, redact
from ims3_ray.errors import InputError, error_chain
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.lease import exclusive

from .mlflow_db import DATABASE, make_database, tracking_uri, warn_of_network_disk
from .tags import ERROR, PARENT, RUN, param_text, provenance_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "ims3_ray"
RECIPE_FILE = "recipe.yaml"
ARTIFACTS = "mlartifacts"  # files of the storage's own database
RETRY_S = 20.0  # between attempts while a server is unreachable; each may take its time-out
FINAL_WAIT_S, FINAL_RETRY_S = 60.0, 5.0  # at the end of a run: in total, and between attempts
DEFAULTS = {  # environment variables of MLflow
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's 7 delay a run by two minutes; `Tracker` retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def client(storage: Directory) -> "MlflowClient":
    """Return the client for this storage; creates its database if missing."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        from mlflow import MlflowClient  # takes seconds

        if storage.is_local and not os.environ.get("MLFLOW_TRACKING_URI"):
            make_database(Path(storage.path, DATABASE))
        return MlflowClient(tracking_uri(storage))


def experiment_id(client: "MlflowClient", storage: Directory) -> str:
    """Return the id of the experiment with all runs; creates it if missing."""
    if experiment := client.get_experiment_by_name(EXPERIMENT):
        return experiment.experiment_id
    is_ours = storage.is_local and not os.environ.get("MLFLOW_TRACKING_URI")  # else the server decides
    location = Path(storage.path, ARTIFACTS).as_uri() if is_ours else None
    return client.create_experiment(EXPERIMENT, artifact_location=location)


class Tracker:
    """The MLflow run of one distillation.

    Calls that fail because the server is unreachable are queued and retried, in order, every RETRY_S and at
    the end. Calls that fail otherwise are dropped. Each kind of error is reported once and never raised.
    """

    _client: "MlflowClient"  # set by the first call, which finds or creates the run

    def __init__(
        self,
        storage: Directory,
        print_line: Callable[[str], None],
        base_tags: Callable[[], Mapping[str, str]] = provenance_tags,  # the given tags override them
    ):
        self._storage, self._print_line, self._base_tags = storage, print_line, base_tags
        self._reported: set[str] = set()  # kinds of errors
        self.run_id: str | None = None
        self.is_finished = False
        self._tags: dict[str, str] = {}
        self._steps: dict[str, set[int]] = {}  # logged steps by metric
        self._is_old = self._has_failed = False  # created by an earlier driver; with its error
        self._queue: list[Callable[[], object]] = []
        self._retry_at = 0.0

    def start(
        self,
        key: str,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str | None = None,
        began: float | None = None,
    ) -> None:
        """Find the run tagged `key`, or create it with `params` (nested mappings) and `tags`.

        A new run is a child of the MLflow run `parent`, and starts now or at `began` (Unix seconds).
        """
        at = int((began or time.time()) * 1000)

        def find_or_create() -> None:
            from mlflow.entities import Param

            self._tags = {**self._base_tags(), **tags}
            warn_of_network_disk(tracking_uri(self._storage))
            with exclusive(self._storage / ARTIFACTS):  # two drivers could each create half a database
                self._client = client(self._storage)
                experiment = experiment_id(self._client, self._storage)
            texts = {field: param_text(value) for field, value in flatten(params).items()}
            if old := self._client.search_runs([experiment], f"tags.`{RUN}` = '{key}'"):
                self.run_id, self.is_finished = old[0].info.run_id, old[0].info.status == "FINISHED"
                self._is_old, self._has_failed = True, ERROR in old[0].data.tags
                texts = {field: text for field, text in texts.items() if field not in old[0].data.params}
            else:
                all_tags = {RUN: key, **({PARENT: parent} if parent else {}), **self._tags}
                self.run_id = self._client.create_run(experiment, at, all_tags, name).info.run_id
            if texts:  # or what did not arrive
                self._client.log_batch(self._run, params=[Param(*item) for item in texts.items()])

        self._do(find_or_create)

    def resume(self) -> None:
        """Set an earlier driver's run to RUNNING, with the tags of this driver and without an error."""

        def resume() -> None:
            from mlflow.entities import RunTag

            if self._is_old:
                self._client.update_run(self._run, "RUNNING")
                self._client.log_batch(self._run, tags=[RunTag(*item) for item in self._tags.items()])
                if self._has_failed:
                    self._client.delete_tag(self._run, ERROR)
                self.is_finished = False

        self._do(resume)

    def tag(self, name: str, value: str) -> None:
        self._do(lambda: self._client.set_tag(self._run, name, value))

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Log metrics of a step, except those already logged, so that a resumed run leaves one curve."""
        now = int(time.time() * 1000)  # time of the measurement, not of the write

        def log() -> None:
            from mlflow.entities import Metric

            numbers = {name: float(value) for name, value in metrics.items() if value is not None}
            fresh = [name for name in numbers if step not in self._logged(name)]
            if fresh:
                points = [Metric(name, numbers[name], now, step) for name in fresh]
                self._client.log_batch(self._run, points)
            for name in fresh:
                self._logged(name).add(step)

        self._do(log)

    def log_file(self, name: str, data: bytes) -> None:
        def log() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, name)
                path.write_bytes(data)
                self._client.log_artifact(self._run, str(path))

        self._do(log)

    def log_recipe(self, recipe: Mapping[str, object]) -> None:
        self.log_file(RECIPE_FILE, yaml.safe_dump(recipe, sort_keys=False).encode())

    def log_dataset(self, name: str, digest: str, source: str, rows: int) -> None:
        """Log the distilled set's digest and URI as a dataset, without its pixels."""

        def log() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            place, profile = json.dumps({"uri": source}), json.dumps({"num_rows": rows})
            scheme = source.split("://")[0] if "://" in source else "local"
            dataset = Dataset(name, digest, source_type=scheme, source=place, profile=profile)
            tag = InputTag("mlflow.data.context", "distilled")
            self._client.log_inputs(self._run, datasets=[DatasetInput(dataset, [tag])])

        self._do(log)

    def finish(self, status: str, *, patient: bool = True, ended: float | None = None) -> bool:
        """End the run as FINISHED, FAILED or KILLED, now or at `ended`; returns whether all is written.

        With `patient`, waits up to FINAL_WAIT_S for an unreachable server.
        """
        at = int((ended or time.time()) * 1000)

        def finish() -> None:
            if not self.is_finished:
                self._client.set_terminated(self._run, status, at)
                self.is_finished = status == "FINISHED"

        self._do(finish)
        if self._queue and patient:
            self._print_line(f"MLflow: waiting up to {FINAL_WAIT_S:.0f} s for the server")
            give_up = time.monotonic() + FINAL_WAIT_S
            while self._queue and time.monotonic() < give_up:
                time.sleep(FINAL_RETRY_S)
                self._flush()
        if self._queue and patient:
            run = self.run_id or "(not created)"
            self._print_line(f"MLflow: {len(self._queue)} records of run {run} could not be written")
        return not self._queue

    def abort(self, error: BaseException) -> None:
        """End the run as FAILED; if a signal stopped it, as KILLED and without waiting for the server."""
        is_failure = isinstance(error, Exception)
        self.finish("FAILED" if is_failure else "KILLED", patient=is_failure)

    @property
    def _run(self) -> str:
        assert self.run_id, "set by the first call"
        return self.run_id

    def _logged(self, metric: str) -> set[int]:
        """Return the steps at which `metric` is logged."""
        if metric not in self._steps:
            points = self._client.get_metric_history(self._run, metric) if self._is_old else []
            self._steps[metric] = {point.step for point in points}
        return self._steps[metric]

    def _do(self, action: Callable[[], object]) -> None:
        self._queue.append(action)
        if time.monotonic() >= self._retry_at:
            self._flush()

    def _flush(self) -> None:
        """Make the queued calls, in order, until MLflow is unreachable."""
        while self._queue:
            try:
                self._queue[0]()
            except InputError:
                raise
            except Exception as error:  # stores and networks raise many types
                self._report(error)
                if _is_unreachable(error) or self.run_id is None:
                    self._retry_at = time.monotonic() + RETRY_S
                    return
            self._queue.pop(0)

    def _report(self, error: Exception) -> None:
        line, outcome = describe_mlflow_error(error), "the run continues without this record"
        kind = line
        if _is_unreachable(error):
            kind, outcome = "unreachable", "the call is retried"
        if kind not in self._reported:
            self._reported.add(kind)
            self._print_line(f"MLflow: {line}; {outcome}")


@contextlib.contextmanager
def mlflow_errors_as_input(storage: Directory) -> Iterator[None]:
    """Convert errors of MLflow in the block to an InputError that names the server or the database."""
    try:
        yield
    except Exception as error:
        is_mlflow = type(error).__module__.split(".")[0] in ("mlflow", "sqlalchemy", "alembic")
        if not is_mlflow and not isinstance(error, ModuleNotFoundError):  # for a database driver
            raise
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            place, remedy = f"MLFLOW_TRACKING_URI: {uri}", "start the server, or name another"
        else:
            place, remedy = f"storage: {storage.uri}/{DATABASE}", "mend it, or move it away with its records"
        raise InputError(f"{place} cannot be queried ({describe_mlflow_error(error)}); {remedy}") from error


def describe_mlflow_error(error: Exception) -> str:
    """Return the first line of an error of MLflow or the network, without secrets."""
    return one_line((redact(str(error)).strip().splitlines() or [type(error).__name__])[0])[:200]


def _is_unreachable(error: BaseException) -> bool:
    """Whether an unreachable server or a locked database is the cause, so that a retry may work."""
    for cause in error_chain(error):  # requests' exceptions are OSErrors
        if isinstance(cause, OSError) or type(cause).__name__ == "OperationalError":
            return True
    return "failed with exception" in str(error) or "too many 5" in str(error)
