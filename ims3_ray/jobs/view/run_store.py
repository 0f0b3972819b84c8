"""Runs of a storage, from MLflow, and the artefacts of a run, from the storage."""

import re
import threading
from functools import cached_property
from typing import TYPE_CHECKING

from ims3_ray.errors import InputError
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.runs import query, tags
from ims3_ray.runs.mlflow_tracker import client, mlflow_errors_as_input
from ims3_ray.runs.query import PLAIN_NAME, Run
from ims3_ray.storage.artifacts import FINGERPRINT, DamagedError, Directory, read_manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient

ID = re.compile(r"[0-9a-f]{32}")  # MLflow's
PAGE = "index.html"


class MissingError(InputError):
    """The address names something that does not exist."""


class RunStore:
    """Reads the current state on each call; caches only the MLflow client."""

    def __init__(self, storage: Directory):
        self.storage = storage
        self._lock = threading.Lock()

    @cached_property
    def _client(self) -> "MlflowClient":
        return client(self.storage)

    def runs(self, sweep: str = "") -> list[Run]:
        """Runs without trials, newest first; or the trials of the sweep with this MLflow id."""
        if sweep:
            self.run(sweep)
            return [run for run in self._find() if run["parent"] == sweep]
        return [run for run in self._find() if run["kind"] != tags.TRIAL]

    def run(self, run_id: str) -> Run:
        """The run with this MLflow id. Raises MissingError if there is none."""
        runs = self._find(f"attributes.run_id = '{run_id}'") if ID.fullmatch(run_id) else []
        if not runs:
            raise MissingError(f"no run has the MLflow id {run_id[:40]!r} here")
        return runs[0]

    def _find(self, conditions: str = "") -> list[Run]:
        if not query.has_tracking(self.storage):
            return []
        with mlflow_errors_as_input(self.storage):
            with self._lock:
                mlflow_client = self._client
            return query.with_live_status(self.storage, query.find_runs(mlflow_client, conditions))

    def artifacts(self, run: Run) -> dict[str, str]:
        """Paths of the run's artefacts in the storage, by stage, in pipeline order; they need not exist."""
        keys = {stage: run["tags"].get(f"artifact.{stage.output}", "") for stage in STAGES}
        # checked because anybody can write to a tracking server
        return {
            stage.name: f"{stage.output}/{key}" for stage, key in keys.items() if FINGERPRINT.fullmatch(key)
        }

    def partial(self, run: Run, stage: str) -> Directory | None:
        """A stage's artefact, perhaps incomplete; None if the run does not have the stage."""
        artifact = self.artifacts(run).get(stage)
        return self.storage / artifact if artifact else None

    def complete(self, run: Run, stage: str) -> Directory | None:
        """A stage's artefact if it is complete and undamaged."""
        artifact = self.partial(run, stage)
        try:
            return artifact if artifact and read_manifest(artifact) else None
        except DamagedError:  # the run's page reports it
            return None

    def page(self, run: Run) -> Directory | None:
        """The folder of the run's own page (report, sweep), if there is one."""
        if run["kind"] == tags.SWEEP:
            name = run["name"].removeprefix(f"{tags.SWEEP}-")
            directory = self.storage / "sweeps" / name if PLAIN_NAME.fullmatch(name) else None
            return directory if directory and directory.exists(PAGE) else None
        return self.complete(run, "report")
