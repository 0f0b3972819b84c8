"""MLflow: one run per distillation, found again by its tag, written by the driver alone.

Trouble with the tracking server never stops a run.
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

from ims3_ray.display import one_line, redact
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.lease import exclusive

from .mlflow_db import DATABASE, make_database, tracking_uri, warn_of_network_disk
from .provenance import provenance_tags
from .tags import PARENT, RUN

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "ims3_ray"
RECIPE_FILE = "recipe.yaml"
ARTIFACTS = "mlartifacts"  # where our own database keeps files
MAX_PARAM = 500  # characters that every MLflow store takes
RETRY_S = 20.0  # between tries while a server is away: each may wait for its time-out
PATIENCE_S, LAST_WAIT_S = 60.0, 5.0  # at the end of a run: in all, and between tries
DEFAULTS = {  # of MLflow's environment
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its own seven hold a run up for two minutes; we try again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def client(storage: Directory) -> "MlflowClient":
    """The client for this storage; its database is made where missing."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        from mlflow import MlflowClient  # seconds to import

        if storage.is_local and not os.environ.get("MLFLOW_TRACKING_URI"):
            make_database(Path(storage.path, DATABASE))
        return MlflowClient(tracking_uri(storage))


def experiment_id(client: "MlflowClient", storage: Directory) -> str:
    """Of the experiment that holds all runs; it is made where missing."""
    if experiment := client.get_experiment_by_name(EXPERIMENT):
        return experiment.experiment_id
    is_ours = storage.is_local and not os.environ.get("MLFLOW_TRACKING_URI")  # else the server says where
    location = Path(storage.path, ARTIFACTS).as_uri() if is_ours else None
    return client.create_experiment(EXPERIMENT, artifact_location=location)


class Tracker:
    """The MLflow run of one distillation. Trouble never stops a run.

    What a server that is away did not take waits and is tried again, in order, every RETRY_S and at the end;
    what MLflow refuses for another reason is said and left out. Each kind of trouble is said once.
    """

    _client: "MlflowClient"  # from the first action on, which finds or creates the run

    def __init__(
        self,
        storage: Directory,
        say: Callable[[str], None],
        base_tags: Callable[[], Mapping[str, str]] = provenance_tags,  # the given tags override them
    ):
        self._storage, self._say, self._base_tags = storage, say, base_tags
        self._troubles: set[str] = set()  # that were said
        self.run_id: str | None = None
        self.is_finished = False
        self._tags: dict[str, str] = {}
        self._steps: dict[str, set[int]] = {}  # that the run holds, by metric
        self._is_old = False  # another driver began it
        self._waiting: list[Callable[[], object]] = []
        self._again_at = 0.0

    def start(
        self,
        key: str,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str | None = None,
        began: float | None = None,
    ) -> None:
        """Find the run tagged `key`, or create it with `params` (nested: `sample.subgroups`) and `tags`.

        A new run lies below the one whose MLflow id is `parent`, and began now or at `began`, Unix seconds.
        """
        at = int((began or time.time()) * 1000)

        def find_or_create() -> None:
            from mlflow.entities import Param

            self._tags = {**self._base_tags(), **tags}
            warn_of_network_disk(tracking_uri(self._storage))
            with exclusive(self._storage / ARTIFACTS):  # else two drivers make one database, each in part
                self._client = client(self._storage)
                experiment = experiment_id(self._client, self._storage)
            if old := self._client.search_runs([experiment], f"tags.`{RUN}` = '{key}'"):
                self.run_id, self.is_finished = old[0].info.run_id, old[0].info.status == "FINISHED"
                self._is_old = True
                return
            all_tags = {RUN: key, **({PARENT: parent} if parent else {}), **self._tags}
            self.run_id = self._client.create_run(experiment, at, all_tags, name).info.run_id
            texts = {field: str(value)[:MAX_PARAM] for field, value in flatten(params).items()}
            self._client.log_batch(self._run, params=[Param(*item) for item in texts.items()])

        self._do(find_or_create)

    def resume(self) -> None:
        """Say of a run that another driver began, and left in any state, that this one is at work on it."""

        def resume() -> None:
            from mlflow.entities import RunTag

            if self._is_old:
                self._client.update_run(self._run, "RUNNING")
                self._client.log_batch(self._run, tags=[RunTag(*item) for item in self._tags.items()])
                self.is_finished = False

        self._do(resume)

    def tag(self, name: str, value: str) -> None:
        self._do(lambda: self._client.set_tag(self._run, name, value))

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Log numbers of a step, but those that the run holds: one that goes on leaves one curve."""
        now = int(time.time() * 1000)  # of the measurement, whenever it is written

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

    def log_dataset(self, name: str, digest: str, source: str, rows: int) -> None:
        """The distilled set as a logged dataset: its digest and place, never its pixels."""

        def log() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            place, profile = json.dumps({"uri": source}), json.dumps({"num_rows": rows})
            scheme = source.split("://")[0] if "://" in source else "local"
            dataset = Dataset(name, digest, source_type=scheme, source=place, profile=profile)
            tag = InputTag("mlflow.data.context", "distilled")
            self._client.log_inputs(self._run, datasets=[DatasetInput(dataset, [tag])])

        self._do(log)

    def finish(self, status: str, *, patient: bool = True, ended: float | None = None) -> bool:
        """Close the run as FINISHED, FAILED or KILLED, now or as of `ended`; whether all is written.

        A `patient` one gives a server that is away PATIENCE_S to come back.
        """
        at = int((ended or time.time()) * 1000)

        def finish() -> None:
            if not self.is_finished:
                self._client.set_terminated(self._run, status, at)
                self.is_finished = status == "FINISHED"

        self._do(finish)
        if self._waiting and patient:
            self._say(f"MLflow: waiting up to {PATIENCE_S:.0f} s for what it has not taken yet")
            give_up = time.monotonic() + PATIENCE_S
            while self._waiting and time.monotonic() < give_up:
                time.sleep(LAST_WAIT_S)
                self._flush()
        if self._waiting and patient:
            run = self.run_id or "that is not there"
            self._say(f"MLflow: {len(self._waiting)} records of run {run} could not be written")
        return not self._waiting

    @property
    def _run(self) -> str:
        assert self.run_id, "the first action gives it"
        return self.run_id

    def _logged(self, metric: str) -> set[int]:
        """The steps at which the run holds `metric`."""
        if metric not in self._steps:
            points = self._client.get_metric_history(self._run, metric) if self._is_old else []
            self._steps[metric] = {point.step for point in points}
        return self._steps[metric]

    def _do(self, action: Callable[[], object]) -> None:
        self._waiting.append(action)
        if time.monotonic() >= self._again_at:
            self._flush()

    def _flush(self) -> None:
        """Do what waits, in order, until MLflow is away."""
        while self._waiting:
            try:
                self._waiting[0]()
            except InputError:
                raise
            except Exception as error:  # whatever a store or a network raises
                self._report(error)
                if _is_away(error) or self.run_id is None:
                    self._again_at = time.monotonic() + RETRY_S
                    return
            self._waiting.pop(0)

    def _report(self, error: Exception) -> None:
        line, outcome = describe_mlflow_error(error), "the run goes on without tracking what fails"
        kind = line
        if _is_away(error):
            kind, outcome = "away", "what is not written is tried again"
        if kind not in self._troubles:
            self._troubles.add(kind)
            self._say(f"MLflow: {line}; {outcome}")


@contextlib.contextmanager
def mlflow_errors_as_input(storage: Directory) -> Iterator[None]:
    """Within the block, what MLflow raises is an InputError that names the server or the database."""
    try:
        yield
    except Exception as error:
        is_theirs = type(error).__module__.split(".")[0] in ("mlflow", "sqlalchemy", "alembic")
        if not is_theirs and not isinstance(error, ModuleNotFoundError):  # of a database's driver
            raise
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            place, remedy = f"MLFLOW_TRACKING_URI: {uri}", "start the server, or name another"
        else:
            place, remedy = f"storage: {storage.uri}/{DATABASE}", "mend it, or move it away with its records"
        raise InputError(f"{place} can't be asked ({describe_mlflow_error(error)}); {remedy}") from error


def describe_mlflow_error(error: Exception) -> str:
    """The first line of what MLflow or the network raised, without secrets."""
    return one_line((redact(str(error)).strip().splitlines() or [type(error).__name__])[0])[:200]


def _is_away(error: BaseException) -> bool:
    """Whether a server that does not answer, or a locked database, is behind it: another time it may work."""
    cause: BaseException | None = error
    while cause is not None:
        # requests' exceptions are OSErrors
        if isinstance(cause, OSError) or type(cause).__name__ == "OperationalError":
            return True
        cause = cause.__cause__ or cause.__context__
    return "failed with exception" in str(error) or "too many 5" in str(error)


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """`{"sample": {"steps": 50}}` as `{"sample.steps": 50}`."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
