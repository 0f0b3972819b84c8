"""Report on a run. Reads everything, makes one self-contained page and a contact sheet."""

from typing import Any

import numpy as np

from .. import tables
from ..artifacts import Directory, read_manifest, read_rows
from ..context import Context
from ..data.distilled import DistilledSet
from ..data.images import decode, encode_png, square
from ..report.page import ReportData, contact_sheet, render

VERSION = 1
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
    drawn = read_rows(inputs["candidates"], tables.CANDIDATES, ["label", "subgroup", "feature"])
    chosen = np.array([selection["selection"][name] for name in classes])
    evaluation = inputs["evaluation"].read_json("evaluation.json") if "evaluation" in inputs else None
    return ReportData(
        recipe=config.recipe,
        config=config.results(),
        classes=classes,
        about={"device": context.machine.device},
        contact=_contact(context, inputs["distilled"]),
        real_features=real["feature"],
        real_labels=real["label"],
        candidate_features=drawn["feature"],
        candidate_labels=drawn["label"],
        candidate_subgroups=drawn["subgroup"],
        candidate_selected=drawn["subgroup"] == chosen[drawn["label"]],
        history=manifests["adapter"]["history"],
        evaluation=evaluation,
        selection=selection,
        stages=[
            {"name": m["stage"], "rows": m["rows"], "unit": m["unit"], "seconds": m["seconds"], "rate": m["rate"]}
            for m in manifests.values()
        ],
        commands={},
    )


def _contact(context: Context, distilled: Directory) -> dict[str, Any]:
    made, train = DistilledSet(distilled), context.images["train"]
    shown = train.subset(REAL_SHOWN, "report", context.config.seed)
    return {
        name: {
            "distilled": [encode_png(np.asarray(made[i][0]).transpose(2, 0, 1)) for i, y in enumerate(made.targets) if y == label],
            "real": [
                encode_png(square(decode(train.directory.read(train.paths[row])), context.info.image_size))
                for row in shown
                if train.labels[row] == label
            ],
        }
        for label, name in enumerate(classes_of(made))
    }


def classes_of(made: DistilledSet) -> list[str]:
    return made.classes
