"""Report on a run. Reads everything, makes one self-contained page and a contact sheet."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import yaml

from ims3_ray.cluster.environment import environment_name, hardware, versions
from ims3_ray.config.load import subject
from ims3_ray.config.reproduce import reproduce
from ims3_ray.data.distilled import is_selected
from ims3_ray.data.transforms import decode, encode_png, square
from ims3_ray.display import redact
from ims3_ray.progress import timed
from ims3_ray.report.coverage_gaps import missed
from ims3_ray.report.inputs import (
    PAGE_CLASSES,
    Pictures,
    ReportData,
    Uncovered,
    looked_at,
    shown_classes,
)
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory, Manifest, read_manifest, summary_of
from ims3_ray.storage.index import Index, read_index

from .base import KEY_BYTES, Cost, Forward, Stage
from .context import Context
from .selected import KEYS

REAL_SHOWN = 10  # real images of a class beside its distilled ones
READS = ("latents", "inversions", "adapter", "features", "candidates", "selection", "probes", "refined")
READS += ("distilled", "evaluation")


def run(context: Context, out: Directory, **inputs: Directory) -> dict[str, object]:
    """Write index.html and contact-sheet.png."""
    with timed("report"):
        from ims3_ray.report.images import contact_sheet  # a second to import, which plans have no use for
        from ims3_ray.report.page import render

        data = _gather(context, out.name, inputs)
        out.write("index.html", render(data))
        out.write("contact-sheet.png", contact_sheet(data))
    return {"rows": 1}


def _gather(context: Context, key: str, inputs: dict[str, Directory]) -> ReportData:
    """What the page of the run `key` shows, read from the artefacts."""
    config, classes = context.config, context.classes
    manifests = {noun: manifest for noun, place in inputs.items() if (manifest := read_manifest(place))}
    selection = inputs["selection"].read_json("selection.json")
    real = _shown(context, read_index(inputs["features"], schemas.FEATURES, ["image_id", "label"]))
    pool = _shown(context, read_index(inputs["candidates"], schemas.CANDIDATES, KEYS))
    features, labels = pool.read("feature"), pool.keys["label"]
    chosen = is_selected(selection, classes, pool.keys)
    refined = read_index(inputs["refined"], schemas.REFINED, ["label"]) if "refined" in inputs else None
    if refined is not None:  # what the set is made of lies where refinement took it
        moved = _shown(context, refined)
        features, labels = (
            np.concatenate(pair)
            for pair in ((moved.read("feature"), features), (moved.keys["label"], labels))
        )
        chosen = np.arange(len(labels)) < len(moved)
    real_features = real.read("feature")
    return ReportData(
        title=subject(config),
        config=config.results(),
        classes=classes,
        about=versions() | hardware(context.machine) | _environments(manifests),
        contact=_contact(context, inputs["distilled"], manifests["distilled"], refined),
        real_features=real_features,
        real_labels=real.keys["label"],
        candidate_features=features,
        candidate_labels=labels,
        candidate_selected=chosen,
        uncovered=_uncovered(context, real.keys, real_features, features[chosen], labels[chosen]),
        history=_history(manifests.get("adapter")),
        refinement=_history(manifests.get("refined")),
        evaluation=inputs["evaluation"].read_json("evaluation.json") if "evaluation" in inputs else None,
        selection=selection,
        stages=[{"name": m["stage"], **summary_of(m)} for m in manifests.values()],
        commands=_commands(context, key),
    )


def _commands(context: Context, key: str) -> dict[str, str]:
    """By what they are for; in the run's storage, from wherever they are given."""
    config, storage = context.config, context.storage.uri
    again = reproduce(yaml.safe_dump(config.results()).encode(), storage)
    find = shlex.join(["python", "jobs/runs.py", f"storage={storage}", "--where", f"run={key}"])
    return {
        "Make it again, or go on where it stopped": redact(again.command),
        "Find it among other runs": redact(find),
    }


def _shown(context: Context, index: Index) -> Index:
    """The rows of classes whose features the page shows."""
    return index.at(np.flatnonzero(np.isin(index.keys["label"], looked_at(context.classes))))


def _environments(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """By environment, the stages that ran there, if the artefacts come from several."""
    made: dict[str, list[str]] = {}
    for manifest in manifests.values():
        if found := cast(Mapping[str, Any], manifest).get("environment"):
            made.setdefault(environment_name(found), []).append(manifest["stage"])
    return {f"on {name}": ", ".join(stages) for name, stages in made.items()} if len(made) > 1 else {}


def _history(manifest: Manifest | None) -> Sequence[Mapping[str, float]]:
    return manifest.get("history", []) if manifest else []


def _contact(
    context: Context, distilled: Directory, manifest: Manifest, refined: Index | None
) -> dict[str, dict[str, Sequence[bytes]]]:
    """PNGs of every class: the distilled images, what they were before refinement, and a few real ones."""
    train = context.images["train"]
    paths: dict[str, list[str]] = {name: [] for name in context.classes}
    for entry in manifest.get("images", []):
        paths[str(entry["class"])].append(str(entry["path"]))
    real: dict[str, list[int]] = {name: [] for name in context.classes}
    for row in train.subset(REAL_SHOWN, "report", context.config.seed):
        real[train.classes[train.labels[row]]].append(row)
    contact: dict[str, dict[str, Sequence[bytes]]] = {}
    for label, name in enumerate(context.classes):
        kinds: dict[str, Sequence[bytes]] = {
            "distilled": Pictures(len(paths[name]), partial(_read_all, distilled.read, paths[name])),
            "before": [],
            "real": Pictures(len(real[name]), partial(_read_all, partial(_real_image, context), real[name])),
        }
        if refined is not None:
            own = refined.at(np.flatnonzero(refined.keys["label"] == label))
            kinds["before"] = Pictures(len(own), partial(_starts, own))
        contact[name] = kinds
    return contact


def _starts(rows: Index) -> list[bytes]:
    return rows.read("start").tolist()


def _read_all(read: Callable[[Any], bytes], places: Sequence[Any]) -> list[bytes]:
    return [read(place) for place in places]


def _uncovered(
    context: Context, keys: schemas.Columns, real: np.ndarray, features: np.ndarray, labels: np.ndarray
) -> dict[str, Uncovered]:
    """By class on the page, real images, `keys` and features (N, D), that none of the set's (M, D) covers."""
    row_of = {image_id: row for row, image_id in enumerate(context.images["train"].ids)}
    shown, neighbours = shown_classes(context.classes, PAGE_CLASSES), context.config.evaluate.neighbours
    uncovered = {}
    for label, of in missed(real, keys["label"], features, labels, labels=shown, k=neighbours).items():
        images = [_real_image(context, row_of[image_id]) for image_id in keys["image_id"][of.rows]]
        uncovered[context.classes[label]] = Uncovered(images, of.count, of.total)
    return uncovered


def _real_image(context: Context, row: int) -> bytes:
    """A training image as the run sees it, as PNG."""
    train = context.images["train"]
    return encode_png(square(decode(train.directory.read(train.paths[row])), context.info.image_size))


def _fingerprint_inputs(context: Context) -> object:
    return [context.config.identity(), subject(context.config)]


def _cost(context: Context, forward: Forward) -> Cost:
    images = len(context.images["train"]) + context.num_candidates
    shown = len(looked_at(context.classes)) / len(context.classes)
    driver = images * (KEY_BYTES + shown * 4 * forward.feature_dim)
    return Cost(1, disk=3e6, driver=driver, start_s=10.0)


STAGE = Stage(
    name="report",
    output="report",
    version=7,
    inputs=READS,
    unit="pages",
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
)
