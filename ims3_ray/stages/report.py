"""Report on a run. Reads everything, makes one self-contained page and a contact sheet."""

import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.data.distilled import DistilledSet, is_selected
from ims3_ray.data.pixels import decode, encode_png, square
from ims3_ray.report import ReportData, contact_sheet, render
from ims3_ray.report.images import PAGE_CLASSES
from ims3_ray.report.inputs import Uncovered, shown_classes
from ims3_ray.report.uncovered import missed
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, Manifest, read_manifest, read_rows, summary_of

from .context import Context
from .contract import Stage
from .costs import Cost, Forward

REAL_SHOWN = 10  # real images of a class beside its distilled ones
READS = ("latents", "inversions", "adapter", "features", "candidates", "selection", "probes", "refined")
READS += ("distilled", "evaluation")


def run(context: Context, out: Directory, **inputs: Directory) -> dict[str, object]:
    """Write index.html and contact-sheet.png."""
    data = _gather(context, inputs)
    out.write("index.html", render(data))
    out.write("contact-sheet.png", contact_sheet(data))
    return {"rows": 1}


def _gather(context: Context, inputs: dict[str, Directory]) -> ReportData:
    """What the page shows, read from the artefacts."""
    config, classes = context.config, context.classes
    manifests = {noun: manifest for noun, place in inputs.items() if (manifest := read_manifest(place))}
    selection = inputs["selection"].read_json("selection.json")
    real = read_rows(inputs["features"], tables.FEATURES, ["image_id", "label", "feature"])
    drawn = read_rows(inputs["candidates"], tables.CANDIDATES, ["label", "subgroup", "index", "feature"])
    chosen = is_selected(selection, classes, drawn)
    refined = read_rows(inputs["refined"], tables.REFINED) if "refined" in inputs else None
    if refined is not None:  # what the set is made of lies where refinement took it
        columns = ((refined["feature"], drawn["feature"]), (refined["label"], drawn["label"]))
        drawn = dict(zip(("feature", "label"), (np.concatenate(pair) for pair in columns), strict=True))
        chosen = np.arange(len(drawn["label"])) < len(refined["label"])
    recipe = shlex.quote(config.recipe)
    return ReportData(
        recipe=config.recipe,
        config=config.results(),
        classes=classes,
        about=versions() | hardware(context.machine),
        contact=_contact(context, inputs["distilled"], refined),
        real_features=real["feature"],
        real_labels=real["label"],
        candidate_features=drawn["feature"],
        candidate_labels=drawn["label"],
        candidate_selected=chosen,
        uncovered=_uncovered(context, real, drawn["feature"][chosen], drawn["label"][chosen]),
        history=_history(manifests.get("adapter")),
        refinement=_history(manifests.get("refined")),
        evaluation=inputs["evaluation"].read_json("evaluation.json") if "evaluation" in inputs else None,
        selection=selection,
        stages=[{"name": m["stage"], **summary_of(m)} for m in manifests.values()],
        commands={
            "Make it again, or go on where it stopped": f"python jobs/distill.py --recipe {recipe}",
            "Find it among other runs": "python jobs/runs.py --order accuracy",
        },
    )


def _history(manifest: Manifest | None) -> Sequence[Mapping[str, float]]:
    return manifest.get("history", []) if manifest else []


def _contact(
    context: Context, distilled: Directory, refined: tables.Columns | None
) -> dict[str, dict[str, list[bytes]]]:
    """PNGs of every class: the distilled images, what they were before refinement, and a few real ones."""
    images, train = DistilledSet(distilled), context.images["train"]
    kinds = ("distilled", "before", "real")
    contact = {name: {kind: list[bytes]() for kind in kinds} for name in images.classes}
    for image, label in images:
        contact[images.classes[label]]["distilled"].append(encode_png(np.asarray(image).transpose(2, 0, 1)))
    if refined is not None:
        for label, png in zip(refined["label"], refined["start"], strict=True):
            contact[images.classes[label]]["before"].append(png)
    for row in train.subset(REAL_SHOWN, "report", context.config.seed):
        contact[train.classes[train.labels[row]]]["real"].append(_real_image(context, row))
    return contact


def _uncovered(
    context: Context, real: tables.Columns, features: np.ndarray, labels: np.ndarray
) -> dict[str, Uncovered]:
    """By class on the page, real images that none of the set's, features (M, D) and labels (M,), covers."""
    row_of = {image_id: row for row, image_id in enumerate(context.images["train"].ids)}
    shown, neighbours = shown_classes(context.classes, PAGE_CLASSES), context.config.evaluate.neighbours
    uncovered = {}
    for label, of in missed(
        real["feature"], real["label"], features, labels, labels=shown, k=neighbours
    ).items():
        images = [_real_image(context, row_of[image_id]) for image_id in real["image_id"][of.rows]]
        uncovered[context.classes[label]] = Uncovered(images, of.count, of.total)
    return uncovered


def _real_image(context: Context, row: int) -> bytes:
    """A training image as the run sees it, as PNG."""
    train = context.images["train"]
    return encode_png(square(decode(train.directory.read(train.paths[row])), context.info.image_size))


def _cost(context: Context, forward: Forward) -> Cost:
    features = len(context.images["train"]) * 4 * forward.feature_dim
    return Cost(1, disk=2e6, memory=features, start_s=10.0, workers=1)


STAGE = Stage(
    name="report",
    noun="report",
    version=4,  # 4: refinement, and distances to the nearest real image
    reads=READS,
    unit="pages",
    run=run,
    depends=lambda context: context.config.identity(),
    cost=_cost,
)
