"""MLflow: one run per distillation, found again by its tag, written by the driver alone.

Trouble with the tracking server never stops a run.
"""

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory
from ims3_ray.text import one_line, redacted

from .tags import PARENT, RUN

EXPERIMENT = "ims3_ray"
RECIPE_FILE = "recipe.yaml"
MAX_PARAM = 500  # characters that every MLflow store takes
RETRY_S = 20.0  # between tries while a server is away: each may wait for its time-out
LAST_TRIES, LAST_WAIT_S = 6, 10.0  # at the end of a run


def tracking_uri(storage: Directory) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in a local storage. InputError where storage is remote and no URI
    is set.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not storage.is_local:
        raise InputError(
            f"storage: {storage.uri} can hold no MLflow database; set MLFLOW_TRACKING_URI to a tracking server"
        )
    return f"sqlite:///{storage.path}/mlflow.db"


def client(storage: Directory) -> Any:
    """An MlflowClient for this storage; its database and experiment are made where missing."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # its own seven hold a run up for two minutes; we try again
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import logging

        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        from mlflow import MlflowClient  # seconds to import

        return MlflowClient(tracking_uri(storage))


def experiment_id(mlflow_client: Any, storage: Directory) -> str:
    found = mlflow_client.get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    location = Path(storage.path, "mlartifacts").as_uri() if storage.is_local else None
    if os.environ.get("MLFLOW_TRACKING_URI"):
        location = None  # the server's own
    return mlflow_client.create_experiment(EXPERIMENT, artifact_location=location)


class Tracker:
    """The MLflow run of one distillation. Trouble never stops a run.

    What a server that is away did not take waits and is tried again, in order, every RETRY_S and at the end;
    what MLflow refuses for another reason is said and left out. Each kind of trouble is said once.
    """

    def __init__(self, storage: Directory, say: Callable[[str], None]):
        self._storage, self._say, self._said = storage, say, set()
        self._client, self.run_id, self.is_finished = None, None, False
        self._steps: dict[str, set[int]] = {}  # that the run holds, by metric
        self._is_found = False  # an older driver began it
        self._waiting: list[Callable[[], None]] = []
        self._again_at = 0.0

    def start(
        self,
        key: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        parent: str | None = None,
    ) -> None:
        """Find the run tagged `key`, or create it with `params` (nested: `sample.subgroups`) and `tags`.

        A new run lies below the one whose MLflow id is `parent`.
        """

        def find_or_create() -> None:
            self._client = client(self._storage)
            experiment = experiment_id(self._client, self._storage)
            found = self._client.search_runs([experiment], f"tags.`{RUN}` = '{key}'")
            if found:
                self.run_id, self.is_finished = found[0].info.run_id, found[0].info.status == "FINISHED"
                self._is_found = True
                return
            above = {PARENT: parent} if parent else {}
            self.run_id = self._client.create_run(
                experiment, run_name=name, tags={RUN: key, **above, **tags}
            ).info.run_id
            from mlflow.entities import Param

            flat = [Param(field, str(value)[:MAX_PARAM]) for field, value in flatten(params).items()]
            self._client.log_batch(self.run_id, params=flat)

        self._do(find_or_create)

    def tag(self, name: str, value: str) -> None:
        self._do(lambda: self._client.set_tag(self.run_id, name, value))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers of a step, but those that the run holds already: a run that goes on leaves one curve."""
        now = int(time.time() * 1000)  # of the measurement, whenever it is written

        def log() -> None:
            from mlflow.entities import Metric

            numbers = {
                name: float(v)
                for name, v in metrics.items()
                if v is not None and step not in self._logged(name)
            }
            if numbers:
                self._client.log_batch(
                    self.run_id, [Metric(name, value, now, step) for name, value in numbers.items()]
                )
            for name in numbers:
                self._logged(name).add(step)

        self._do(log)

    def _logged(self, metric: str) -> set[int]:
        """The steps at which the run holds `metric`."""
        if metric not in self._steps:
            points = self._client.get_metric_history(self.run_id, metric) if self._is_found else []
            self._steps[metric] = {point.step for point in points}
        return self._steps[metric]

    def log_file(self, name: str, data: bytes) -> None:
        def log() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, name)
                path.write_bytes(data)
                self._client.log_artifact(self.run_id, str(path))

        self._do(log)

    def log_dataset(self, name: str, digest: str, source: str, rows: int) -> None:
        """The distilled set as a logged dataset: its digest and place, never its pixels."""

        def log() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            place, profile = json.dumps({"uri": source}), json.dumps({"num_rows": rows})
            dataset = Dataset(name, digest, source_type="local", source=place, profile=profile)
            tag = InputTag("mlflow.data.context", "distilled")
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, [tag])])

        self._do(log)

    def finish(self, status: str, *, patient: bool = True) -> bool:
        """Close the run as FINISHED, FAILED or KILLED; whether all is written.

        A `patient` one gives a server that is away a minute to come back.
        """

        def finish() -> None:
            if not self.is_finished:
                self._client.set_terminated(self.run_id, status)

        self._do(finish)
        for _ in range(LAST_TRIES if patient else 0):
            if not self._waiting:
                break
            time.sleep(LAST_WAIT_S)
            self._flush()
        if self._waiting and patient:
            self._say(
                f"MLflow: {len(self._waiting)} records of run {self.run_id or 'that is not there'} could not be written"
            )
        return not self._waiting

    def _do(self, action: Callable[[], None]) -> None:
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
                self._tell(error)
                if _is_away(error) or self.run_id is None:
                    self._again_at = time.monotonic() + RETRY_S
                    return
            self._waiting.pop(0)

    def _tell(self, error: Exception) -> None:
        first = one_line((redacted(str(error)).strip().splitlines() or [type(error).__name__])[0])[:200]
        kind = "away" if _is_away(error) else first
        if kind not in self._said:
            self._said.add(kind)
            goes_on = (
                "what is not written is tried again"
                if kind == "away"
                else "the run goes on without tracking what fails"
            )
            self._say(f"MLflow: {first}; {goes_on}")


def _is_away(error: Exception) -> bool:
    """Whether a server that does not answer, or a locked database, is behind it: another time it may work."""
    seen: BaseException | None = error
    while seen is not None:
        # requests' exceptions are OSErrors
        if isinstance(seen, OSError) or type(seen).__name__ == "OperationalError":
            return True
        seen = seen.__cause__ or seen.__context__
    return "failed with exception" in str(error) or "too many 5" in str(error)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"sample": {"steps": 50}}` as `{"sample.steps": 50}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
