"""Report on a run: all artefacts → one self-contained page and a contact sheet."""

import shlex
from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from ims3_ray.cluster.environment import hardware, stages_by_environment, versions
from ims3_ray.config.load import subject
from ims3_ray.config.reproduce import reproduce
from ims3_ray.data.distilled import is_selected
from ims3_ray.data.packed_sets import unpacked
from ims3_ray.data.transforms import decode, encode_png, png_of, square
from ims3_ray.display import redact
from ims3_ray.progress import timed
from ims3_ray.report.feature_space import find_uncovered
from ims3_ray.report.inputs import (
    PAGE_CLASSES,
    ReportData,
    Uncovered,
    feature_classes,
    image_classes,
    shown_classes,
)
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory, Manifest, read_manifest, summary_of
from ims3_ray.storage.rows import Index, read_index

from .base import KEY_BYTES, Cost, Forward, Stage
from .context import Context
from .selected import KEYS

MAX_REAL = 10  # real images per class beside the distilled ones
INPUTS = ("latents", "inversions", "adapter", "features", "candidates", "selection", "probes", "refined")
INPUTS += ("teacher", "distilled", "evaluation")


def run(context: Context, out: Directory, **inputs: Directory) -> dict[str, object]:
    """Write index.html and contact-sheet.png."""
    with timed("report"):
        from ims3_ray.report.images import contact_sheet  # takes a second to import; plans do not need it
        from ims3_ray.report.page import render

        data = _gather(context, out.name, inputs)
        out.write("index.html", render(data))
        out.write("contact-sheet.png", contact_sheet(data))
    return {"rows": 1}


def _gather(context: Context, key: str, inputs: dict[str, Directory]) -> ReportData:
    config, classes = context.config, context.classes
    manifests = {kind: manifest for kind, folder in inputs.items() if (manifest := read_manifest(folder))}
    selection = inputs["selection"].read_json("selection.json") if "selection" in inputs else None
    real = _page_rows(context, read_index(inputs["features"], schemas.FEATURES, ["image_id", "label"]))
    kinds = ("refined", schemas.REFINED, ["label"]), ("candidates", schemas.CANDIDATES, KEYS)
    made = {k: read_index(inputs[k], table, keys) for k, table, keys in kinds if k in inputs}
    refined, shown = made.get("refined"), [_page_rows(context, index) for index in made.values()]
    features = np.concatenate([rows.read("feature") for rows in shown])
    labels = np.concatenate([rows.keys["label"] for rows in shown])
    if selection and refined is None:
        selected = is_selected(selection, classes, shown[0].keys)
    else:  # the set consists of the refined images
        selected = np.arange(len(labels)) < len(shown[0])
    real_features = real.read("feature")
    paths: dict[str, list[str]] = {name: [] for name in classes}
    for entry in manifests["distilled"].get("images", []):
        paths[str(entry["class"])].append(str(entry["path"]))
    return ReportData(
        title=subject(config),
        config=config.results(),
        classes=classes,
        about=versions() | hardware(context.machine) | _environments(manifests),
        counts=[len(paths[name]) for name in classes],
        contact=_contact(context, inputs["distilled"], paths, refined),
        real_features=real_features,
        real_labels=real.keys["label"],
        candidate_features=features,
        candidate_labels=labels,
        candidate_selected=selected,
        uncovered=_uncovered_images(context, real.keys, real_features, features[selected], labels[selected]),
        history=_history(manifests.get("adapter")),
        refinement=_history(manifests.get("refined")),
        evaluation=inputs["evaluation"].read_json("evaluation.json") if "evaluation" in inputs else None,
        selection=selection,
        stages=[{"name": m["stage"], **summary_of(m)} for m in manifests.values()],
        commands=_commands(context, key),
    )


def _commands(context: Context, key: str) -> dict[str, str]:
    config, storage = context.config, context.storage.uri
    command = reproduce(yaml.safe_dump(config.results()).encode(), storage)
    find = shlex.join(["ims3", "runs", f"storage={storage}", "--where", f"run={key}"])
    return {"Reproduce or resume this run": redact(command.command), "Find this run": redact(find)}


def _page_rows(context: Context, index: Index) -> Index:
    """The rows of the classes whose features the page shows."""
    return index.take(np.flatnonzero(np.isin(index.keys["label"], feature_classes(context.classes))))


def _environments(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """Stages by environment; empty if all ran in the same one."""
    by_name = stages_by_environment(manifests.values())
    return {f"on {name}": ", ".join(stages) for name, stages in by_name.items()} if len(by_name) > 1 else {}


def _history(manifest: Manifest | None) -> Sequence[Mapping[str, float]]:
    return manifest.get("history", []) if manifest else []


def _contact(
    context: Context, distilled: Directory, paths: Mapping[str, Sequence[str]], refined: Index | None
) -> dict[str, dict[str, Sequence[bytes]]]:
    """Images by class: distilled ones, also unpacked, the same before refinement, and a few real ones."""
    train = context.images["train"]
    real = train.subset(MAX_REAL, "report", context.config.seed)
    contact: dict[str, dict[str, Sequence[bytes]]] = {}
    for label in image_classes(context.classes):
        name = context.classes[label]
        contact[name] = {
            "distilled": [distilled.read(path) for path in paths[name]],
            "real": [_real_image(context, row) for row in real if train.labels[row] == label],
        }
        if context.tiles:
            stored, factor = contact[name]["distilled"], context.tiles.factor
            contact[name]["unpacked"] = [
                png_of(tile) for png in stored for tile in unpacked(png, factor, name)
            ]
        if refined is not None:
            rows = refined.take(np.flatnonzero(refined.keys["label"] == label))
            contact[name]["before"] = rows.read("start").tolist()
    return contact


def _uncovered_images(
    context: Context, keys: schemas.Columns, real: np.ndarray, features: np.ndarray, labels: np.ndarray
) -> dict[str, Uncovered]:
    """Uncovered real images by class, for the classes on the page.

    `keys` and `real` (N, D) are the real images' rows; `features` (M, D) and `labels` are the set's.
    """
    row_of = {image_id: row for row, image_id in enumerate(context.images["train"].ids)}
    on_page, k = shown_classes(context.classes, PAGE_CLASSES), context.config.evaluate.neighbours
    uncovered = {}
    for label, rows in find_uncovered(real, keys["label"], features, labels, labels=on_page, k=k).items():
        images = [_real_image(context, row_of[image_id]) for image_id in keys["image_id"][rows.rows]]
        uncovered[context.classes[label]] = Uncovered(images, rows.count, rows.total)
    return uncovered


def _real_image(context: Context, row: int) -> bytes:
    """A training image as PNG, cropped and resized as the run sees it."""
    train = context.images["train"]
    return encode_png(square(decode(train.directory.read(train.paths[row])), context.image_size))


def _fingerprint_inputs(context: Context) -> object:
    return [context.config.identity(), subject(context.config)]


def _cost(context: Context, forward: Forward) -> Cost:
    images = len(context.images["train"]) + context.num_candidates
    share = len(feature_classes(context.classes)) / len(context.classes)
    driver = images * (KEY_BYTES + share * 4 * forward.feature_dim)
    return Cost(1, disk=3e6, driver=driver, start_s=10.0)


STAGE = Stage(
    name="report",
    output="report",
    version=8,
    inputs=INPUTS,
    unit="pages",
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
)
