"""A small storage with hand-made runs and hostile class names, for tests of the view."""

import json
import os
import time

import numpy as np
from pages import evaluation, png, selection
from stored import write_set

from ims3_ray.config.load import load_config
from ims3_ray.data.distilled import DistilledImage
from ims3_ray.evaluation.results import headline_metrics
from ims3_ray.runs import tags
from ims3_ray.runs.event_log import EventLog
from ims3_ray.runs.mlflow_tracker import Tracker
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import complete, open_storage
from ims3_ray.storage.lease import HEARTBEAT, write_heartbeat
from ims3_ray.storage.rows import pack_keys, write_index

CLASSES = ("<script>alert(1)", 'a "quoted" & b')
SUBGROUPS, PER_SUBGROUP, STEPS = 3, 2, 20
CHOSEN = 2  # the selected subgroup of pages.selection
ARTIFACTS = {"candidates": "a" * 12, "selection": "b" * 12, "refined": "c" * 12, "distilled": "d" * 12}
ARTIFACTS |= {"evaluation": "e" * 12, "report": "f" * 12}
REPORT = b"<script>alert(1)</script><h1>report</h1>"
DETAILS = {"rows": 4, "unit": "images", "seconds": 1.5, "rate": 2.5, "version": 1}
DETAILS |= {"inputs": {}, "device": "cpu"}


def make_artifacts(storage) -> None:
    """Write all artefacts of one run, with the keys of ARTIFACTS."""
    rng, places = np.random.default_rng(0), {noun: storage / noun / key for noun, key in ARTIFACTS.items()}
    grid = np.array([(c, g, k) for c in range(2) for g in range(SUBGROUPS) for k in range(PER_SUBGROUP)])
    rows = dict(zip(("label", "subgroup", "index"), grid.T.astype(np.int64), strict=True))
    pngs = np.array([png(rng) for _ in grid], object)
    rows |= {"seed": np.arange(len(grid)), "image": pngs, "feature": np.zeros((len(grid), 3), np.float32)}
    _write_rows(places["candidates"], rows, schemas.CANDIDATES)
    places["selection"].write_json("selection.json", selection(CLASSES) | {"ipc": PER_SUBGROUP})
    chosen = np.flatnonzero(rows["subgroup"] == CHOSEN)
    refined = {name: values[chosen] for name, values in rows.items()}
    refined |= {"start": refined["image"], "start_feature": refined["feature"]}
    refined |= {"place": np.array([0, 1, 0, 1]), "kept": np.array([True, False, False, False])}
    refined["image"] = np.array([png(rng) for _ in chosen], object)
    refined |= {"loss": np.tile(np.linspace(1, 0.5, 4, dtype=np.float32), (4, 1))}
    _write_rows(places["refined"], refined, schemas.REFINED)
    keys = np.stack([refined[name] for name in ("label", "place", "subgroup", "index", "seed")], axis=1)
    images = [DistilledImage(*row, data) for row, data in zip(keys.tolist(), refined["image"], strict=True)]
    write_set(places.pop("distilled"), images, CLASSES, 2, **DETAILS)
    places["evaluation"].write_json("evaluation.json", evaluation())
    places["report"].write("index.html", REPORT)
    for place in places.values():
        complete(place, DETAILS)


def _write_rows(place, rows, table) -> None:
    place.write("part-00000.parquet", schemas.to_parquet(rows, table))
    write_index(place, {"part-00000.parquet": pack_keys(rows, table)})


def track(storage, key, metrics, *, overrides=None, own=None, status="FINISHED", parent=None):
    """Log a run in MLflow; return its id."""
    tracker = Tracker(storage, AssertionError)
    defaults = {tags.KIND: tags.DISTILLATION, tags.PROTOCOL: "quick-v1/n", tags.SCORED: "ours"}
    recipe = load_config("digits", {"ipc": 2, "refine.steps": STEPS} | (overrides or {})).results()
    tags_of = defaults | (own or {})
    name = {tags.TRIAL: key, tags.DISTILLATION: f"digits-{key}"}.get(tags_of[tags.KIND])
    tracker.start(key, name or f"{tags_of[tags.KIND]}-{key}", recipe, tags_of, parent)
    tracker.log(0, metrics)
    if status != "RUNNING":
        tracker.finish(status)
    return tracker.run_id


def make_storage(root):
    """(storage, MLflow ids by name): a finished, a failed and a running run, and a sweep with one trial."""
    storage = open_storage(str(root))
    make_artifacts(storage)
    artifact_tags = {f"artifact.{noun}": key for noun, key in ARTIFACTS.items()}
    figures = headline_metrics(json.loads(json.dumps(evaluation())))
    figures |= {"sample/seconds": 60.0, "evaluate/seconds": 5.0}
    ids = {"whole": track(storage, "aaaa", figures, own=artifact_tags)}
    ids["failed"] = track(
        storage, "bbbb", {"accuracy/distilled/last": 0.2}, overrides={"seed": 7}, status="FAILED"
    )
    begun = artifact_tags | {"artifact.evaluation": "0" * 12, "artifact.report": "1" * 12}
    ids["running"] = track(storage, "cccc", {"evaluate/loss": 0.25}, own=begun, status="RUNNING")
    folder = storage / "runs/digits-cccc"
    EventLog(folder).write("stage started", stage="evaluate", artifact="evaluation/" + "0" * 12)
    write_heartbeat(folder)
    os.utime(f"{folder.path}/{HEARTBEAT}", (time.time() + 3600,) * 2)  # stays current during the tests
    ids["sweep"] = track(storage, "digits-s", {}, own={tags.KIND: tags.SWEEP})
    trial = {tags.KIND: tags.TRIAL}
    ids["trial"] = track(
        storage, "digits-s-1", {"accuracy/distilled/last": 0.6}, own=trial, parent=ids["sweep"]
    )
    return storage, ids
