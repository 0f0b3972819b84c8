"""The runs of a storage as MLflow knows them, and the artefacts of one as they lie there."""

import re
import threading
from functools import cached_property
from typing import TYPE_CHECKING

from ims3_ray.errors import InputError
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.runs import query, tags
from ims3_ray.runs.mlflow_tracker import client, mlflow_errors_as_input
from ims3_ray.runs.query import PLAIN_NAME, Run
from ims3_ray.storage.artifacts import DamagedError, Directory, read_manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient

ID = re.compile(r"[0-9a-f]{32}")  # MLflow's
FINGERPRINT = re.compile(r"[0-9a-f]{12}")  # anybody can write to a tracking server
FOLDERS = {tags.ABLATION: "ablations", tags.SWEEP: "sweeps"}  # of products with a page of their own
PAGE = "index.html"


class MissingError(InputError):
    """What an address names is not there."""


class Catalogue:
    """Read anew whenever it is asked."""

    def __init__(self, storage: Directory):
        self.storage = storage
        self._lock = threading.Lock()

    @cached_property
    def _client(self) -> "MlflowClient":
        return client(self.storage)

    def runs(self, sweep: str = "") -> list[Run]:
        """Newest first, without trials; the trials of the sweep whose MLflow id is given."""
        if sweep:
            self.run(sweep)
            return [run for run in self._find() if run["parent"] == sweep]
        return [run for run in self._find() if run["kind"] != tags.TRIAL]

    def run(self, run_id: str) -> Run:
        """The run with this MLflow id. MissingError where there is none."""
        found = self._find(f"attributes.run_id = '{run_id}'") if ID.fullmatch(run_id) else []
        if not found:
            raise MissingError(f"no run has the MLflow id {run_id[:40]!r} here")
        return found[0]

    def _find(self, conditions: str = "") -> list[Run]:
        if not query.has_tracking(self.storage):
            return []
        with mlflow_errors_as_input(self.storage):
            with self._lock:
                known = self._client
            return query.with_live_status(self.storage, query.find_runs(known, conditions))

    def artifacts(self, run: Run) -> dict[str, str]:
        """By stage, in their order, where below the storage the run's artefacts belong."""
        named = {
            stage.name: (stage.output, run["tags"].get(f"artifact.{stage.output}", "")) for stage in STAGES
        }
        return {name: f"{noun}/{key}" for name, (noun, key) in named.items() if FINGERPRINT.fullmatch(key)}

    def begun(self, run: Run, stage: str) -> Directory | None:
        """The artefact of one of its stages as far as it is made; None where the run has no such stage."""
        artifact = self.artifacts(run).get(stage)
        return self.storage / artifact if artifact else None

    def made(self, run: Run, stage: str) -> Directory | None:
        """The same if it is complete and whole."""
        artifact = self.begun(run, stage)
        try:
            return artifact if artifact and read_manifest(artifact) else None
        except DamagedError:  # which the run's page says
            return None

    def page(self, run: Run) -> Directory | None:
        """The folder with the product's own page, if there is one."""
        if folder := FOLDERS.get(run["kind"]):
            name = run["name"].removeprefix(f"{run['kind']}-")
            place = self.storage / folder / name if PLAIN_NAME.fullmatch(name) else None
            return place if place and place.exists(PAGE) else None
        return self.made(run, "report")
