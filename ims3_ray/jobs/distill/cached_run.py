"""A run of which everything is complete, found without planning it anew: no Ray, torch or MLflow."""

from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.runs import plan_cache
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import Directory, check_format, open_directory, read_manifest, summary_of

from .result import Distillation, StageRun


def find_complete(config: Config) -> Distillation | None:
    """The run, where it was finished before, its record too, and every artefact is as it was written."""
    storage = open_directory(config.storage)
    tracking_uri(storage)  # refuses, before a bucket is asked for anything, one without a tracking server
    # environments are compared where a run is planned
    is_sought = not config.workers.strict and check_format(storage)
    receipt = plan_cache.find(storage, config) if is_sought else None
    if not receipt or not receipt["is_finished"]:
        return None
    stages: list[StageRun] = []
    places: dict[str, Directory] = {}
    for name, artifact in receipt["steps"]:
        places[name] = storage / artifact
        try:
            manifest = read_manifest(places[name])
        except InputError:
            return None
        if manifest is None:
            return None
        stages.append({"name": name, "ran": False, "gpus": manifest.get("gpus"), **summary_of(manifest)})
    for note in receipt["notes"]:
        print(note)
    return Distillation(
        key=receipt["run"].rpartition("-")[2],
        distilled=places["export"].uri,
        report=(places["report"] / "index.html").uri,
        evaluation=places["evaluate"].read_json("evaluation.json") if "evaluate" in places else None,
        figures={},
        stages=stages,
        mlflow_run_id=None,
        tracking_uri="",
    )
