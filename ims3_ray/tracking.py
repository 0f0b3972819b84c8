"""MLflow: one run per distillation, found again by its tag, written by the driver alone.

Trouble with the tracking server is said once and never stops a run.
"""

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .artifacts import Directory
from .errors import InputError
from .shown import one_line, redacted

EXPERIMENT = "ims3_ray"
RUN_TAG = "ims3.run"
KIND_TAG = "kind"
DISTILLATION, ABLATION, SWEEP, TRIAL = KINDS = ("distillation", "ablation", "sweep", "trial")
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: its pages nest by it
PROTOCOL_TAG, SCORED_TAG = "protocol", "scored"  # the protocol's label, the scored images' fingerprint
RECIPE_FILE = "recipe.yaml"
MAX_PARAM = 500  # characters that every MLflow store takes


def tracking_uri(storage: Directory) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in a local storage. InputError where storage is remote and no URI is set."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not storage.is_local:
        raise InputError(f"storage: {storage.uri} can hold no MLflow database; set MLFLOW_TRACKING_URI to a tracking server")
    return f"sqlite:///{storage.path}/mlflow.db"


def client(storage: Directory) -> Any:
    """An MlflowClient for this storage; its database and experiment are made where missing."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
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
    """The MLflow run of one distillation. Every method is a wish: what fails is said once, on standard error."""

    def __init__(self, storage: Directory, say: Callable[[str], None]):
        self._say, self._trouble = say, False
        self._client, self.run_id, self.is_finished = None, None, False
        with self._wish():
            self._client = client(storage)
            self._experiment = experiment_id(self._client, storage)

    def start(self, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str], parent: str | None = None) -> None:
        """Find the run tagged `key`, or create it with `params` (nested: `sample.subgroups`) and `tags`.

        A new run lies below the one whose MLflow id is `parent`.
        """
        with self._wish():
            found = self._client.search_runs([self._experiment], f"tags.`{RUN_TAG}` = '{key}'")
            if found:
                self.run_id, self.is_finished = found[0].info.run_id, found[0].info.status == "FINISHED"
                return
            above = {PARENT_TAG: parent} if parent else {}
            of_run = {RUN_TAG: key, **above, **tags}
            self.run_id = self._client.create_run(self._experiment, run_name=name, tags=of_run).info.run_id
            from mlflow.entities import Param

            flat = [Param(field, str(value)[:MAX_PARAM]) for field, value in flatten(params).items()]
            self._client.log_batch(self.run_id, params=flat)

    def tag(self, name: str, value: str) -> None:
        with self._wish():
            if self.run_id:
                self._client.set_tag(self.run_id, name, value)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._wish():
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            numbers = {name: float(value) for name, value in metrics.items() if value is not None}
            self._client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in numbers.items()])

    def has(self, metric: str) -> bool:
        """Whether the run holds `metric` already."""
        held = False
        with self._wish():
            held = metric in self._client.get_run(self.run_id).data.metrics
        return held

    def log_file(self, name: str, data: bytes) -> None:
        with self._wish(), tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(data)
            self._client.log_artifact(self.run_id, str(path))

    def log_dataset(self, name: str, digest: str, source: str, rows: int) -> None:
        """The distilled set as a logged dataset: its digest and place, never its pixels."""
        with self._wish():
            import json

            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(
                name, digest, source_type="local", source=json.dumps({"uri": source}), profile=json.dumps({"num_rows": rows})
            )
            tag = InputTag("mlflow.data.context", "distilled")
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, [tag])])

    def finish(self, status: str) -> None:
        """Close the run as FINISHED or FAILED."""
        with self._wish():
            if self.run_id and not self.is_finished:
                self._client.set_terminated(self.run_id, status)

    @contextlib.contextmanager
    def _wish(self) -> Any:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # whatever a store or a network raises
            if not self._trouble:
                first = redacted(str(error)).strip().splitlines() or [type(error).__name__]
                self._say(f"MLflow: {one_line(first[0])[:200]}; the run goes on without tracking what fails")
            self._trouble = True


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"sample": {"steps": 50}}` as `{"sample.steps": 50}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
