"""Select one subgroup a class (S³, Eq. 8–11). Reads features of candidates and real images, makes a selection."""

from typing import Any

from ..artifacts import Directory
from ..context import Context
from ..data.feature_tables import open_candidates
from ..selecting import select_features

VERSION = 3


def run(context: Context, out: Directory, candidates: Directory, features: Directory) -> dict[str, Any]:
    """Write selection.json: what is chosen, the objective and its terms, bound and gap, solver and settings."""
    config = context.config
    made = select_features(
        open_candidates(candidates, features, ("candidates", "features")),
        config.select,
        ipc=config.ipc,
        seed=config.seed,
        machine=context.machine,
        names=context.classes,
    )
    document = made.document
    out.write_json("selection.json", document)
    context.on_metrics("select", 0, {"objective": document["objective"], **document["terms"]})
    return {"rows": made.subgroups, "unit": "subgroups", "shards": made.shards}
