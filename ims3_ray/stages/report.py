"""Report on a run. Reads everything, makes one self-contained page and a contact sheet."""

import shlex
from typing import Any

import numpy as np

from .. import tables
from ..artifacts import Directory, read_manifest, read_rows
from ..context import Context
from ..data.distilled import DistilledSet, is_selected
from ..data.images import decode, encode_png, square
from ..environment import hardware, versions
from ..report.page import ReportData, contact_sheet, render

VERSION = 3
REAL_SHOWN = 10  # real images of a class beside its distilled ones


def run(context: Context, out: Directory, **inputs: Directory) -> dict[str, Any]:
    """Write index.html and contact-sheet.png."""
    data = gather(context, inputs)
    out.write("index.html", render(data))
    out.write("contact-sheet.png", contact_sheet(data))
    return {"rows": 1, "unit": "pages"}


def gather(context: Context, inputs: dict[str, Directory]) -> ReportData:
    """What the page shows, read from the artefacts."""
    config, classes = context.config, context.classes
    manifests = {noun: read_manifest(directory) for noun, directory in inputs.items()}
    selection = inputs["selection"].read_json("selection.json")
    real = read_rows(inputs["features"], tables.FEATURES, ["label", "feature"])
    drawn = read_rows(inputs["candidates"], tables.CANDIDATES, ["label", "subgroup", "index", "feature"])
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
        candidate_selected=is_selected(selection, classes, drawn),
        history=manifests["adapter"]["history"],
        evaluation=evaluation,
        selection=selection,
        stages=[
            {"name": m["stage"], "rows": m["rows"], "unit": m["unit"], "seconds": m["seconds"], "rate": m["rate"]}
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
    contact: dict[str, dict[str, list[bytes]]] = {name: {"distilled": [], "real": []} for name in made.classes}
    for image, label in made:
        contact[made.classes[label]]["distilled"].append(encode_png(np.asarray(image).transpose(2, 0, 1)))
    for row in train.subset(REAL_SHOWN, "report", context.config.seed):
        real = square(decode(train.directory.read(train.paths[row])), context.info.image_size)
        contact[train.classes[train.labels[row]]]["real"].append(encode_png(real))
    return contact
