"""Report on a run. Reads everything, makes one self-contained page and a contact sheet."""

import shlex
from typing import Any

import numpy as np

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.data.distilled import DistilledSet, is_selected
from ims3_ray.data.pixels import decode, encode_png, square
from ims3_ray.report.images import PAGE_CLASSES
from ims3_ray.report.inputs import Uncovered, shown_classes
from ims3_ray.report.page import ReportData, contact_sheet, render
from ims3_ray.report.uncovered import missed
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, read_manifest, read_rows

from .context import Context
from .contract import Stage
from .costs import Cost, Forward

REAL_SHOWN = 10  # real images of a class beside its distilled ones


def run(context: Context, out: Directory, **inputs: Directory) -> dict[str, Any]:
    """Write index.html and contact-sheet.png."""
    data = gather(context, inputs)
    out.write("index.html", render(data))
    out.write("contact-sheet.png", contact_sheet(data))
    return {"rows": 1}


def gather(context: Context, inputs: dict[str, Directory]) -> ReportData:
    """What the page shows, read from the artefacts."""
    config, classes = context.config, context.classes
    manifests = {noun: read_manifest(directory) for noun, directory in inputs.items()}
    selection = inputs["selection"].read_json("selection.json")
    real = read_rows(inputs["features"], tables.FEATURES, ["image_id", "label", "feature"])
    drawn = read_rows(inputs["candidates"], tables.CANDIDATES, ["label", "subgroup", "index", "feature"])
    picked = is_selected(selection, classes, drawn)
    evaluation = inputs["evaluation"].read_json("evaluation.json") if "evaluation" in inputs else None
    return ReportData(
        recipe=config.recipe,
        config=config.results(),
        classes=classes,
        about=versions() | hardware(context.machine),
        contact=_contact(context, inputs["distilled"]),
        real_features=real["feature"],
        real_labels=real["label"],
        candidate_features=drawn["feature"],
        candidate_labels=drawn["label"],
        candidate_selected=picked,
        uncovered=_uncovered(context, real, drawn["feature"][picked], drawn["label"][picked]),
        history=manifests["adapter"]["history"],
        evaluation=evaluation,
        selection=selection,
        stages=[
            {
                "name": m["stage"],
                "rows": m["rows"],
                "unit": m["unit"],
                "seconds": m["seconds"],
                "rate": m["rate"],
            }
            for m in manifests.values()
        ],
        commands={
            "Make it again, or go on where it stopped": f"python jobs/distill.py --recipe {shlex.quote(config.recipe)}",
            "Find it among other runs": "python jobs/runs.py --order accuracy",
        },
    )


def _contact(context: Context, distilled: Directory) -> dict[str, dict[str, list[bytes]]]:
    """PNGs of every class: the distilled images, and a few real ones."""
    made, train = DistilledSet(distilled), context.images["train"]
    contact: dict[str, dict[str, list[bytes]]] = {
        name: {"distilled": [], "real": []} for name in made.classes
    }
    for image, label in made:
        contact[made.classes[label]]["distilled"].append(encode_png(np.asarray(image).transpose(2, 0, 1)))
    for row in train.subset(REAL_SHOWN, "report", context.config.seed):
        contact[train.classes[train.labels[row]]]["real"].append(_real_image(context, row))
    return contact


def _uncovered(
    context: Context, real: tables.Columns, features: np.ndarray, labels: np.ndarray
) -> dict[str, Uncovered]:
    """Of the classes on the page: the real images that none of the set's (features (M, D), labels (M,))
    covers.
    """
    row_of = {image_id: row for row, image_id in enumerate(context.images["train"].ids)}
    shown, neighbours = shown_classes(context.classes, PAGE_CLASSES), context.config.evaluate.neighbours
    found = missed(real["feature"], real["label"], features, labels, labels=shown, k=neighbours)
    return {
        context.classes[label]: Uncovered(
            [_real_image(context, row_of[image_id]) for image_id in real["image_id"][of.rows]],
            of.count,
            of.total,
        )
        for label, of in found.items()
    }


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
    version=3,
    reads=tuple("latents inversions adapter features candidates selection distilled evaluation".split()),
    unit="pages",
    run=run,
    depends=lambda context: context.config.results(),
    cost=_cost,
)
