"""Stage select: choose one subgroup per class by S³ (Eq. 8–11) from features. Writes a selection."""

import numpy as np

from ims3_ray.stages.base import KEY_BYTES, Cost, Forward, GpuUsage, Stage
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .candidates import open_candidates
from .run_selection import select_features
from .shard_actors import MIN_ROWS_BYTES, image_bytes, trws_memory


def run(context: Context, out: Directory, candidates: Directory, features: Directory) -> dict[str, object]:
    """Write selection.json: the choice, the objective and its terms, bound, gap, solver, settings."""
    config = context.config
    # subgroup mode uses the first images of a subgroup; image mode uses all
    by_subgroup, ipc = config.select.unit == "subgroup", config.unpacked_ipc
    limits = {"subgroup": config.select.subgroups, "index": ipc if by_subgroup else None}
    outcome = select_features(
        open_candidates(candidates, features, ("candidates", "features"), **limits),
        config.select,
        ipc=ipc,
        seed=config.seed,
        machine=context.machine,
        names=context.classes,
    )
    document = outcome.document | ({"ipc": ipc} if by_subgroup else {})
    out.write_json("selection.json", document)
    return {"rows": outcome.subgroups}


def _figures(out: Directory) -> dict[str, float]:
    selection = out.read_json("selection.json")
    return {"objective": selection["objective"], **selection["terms"]}


def _fingerprint_inputs(context: Context) -> object:
    config = context.config
    settings = config.select.model_dump(mode="json", exclude={"memory_gb"})
    return [settings, config.seed, list(context.classes), config.unpacked_ipc]


def _cost(context: Context, forward: Forward) -> Cost:
    config, classes, width = context.config, len(context.classes), forward.feature_dim
    subgroups = classes * config.sample.subgroups
    num_images = np.full(classes, context.num_candidates / classes)
    kept, products = image_bytes(config.select, width, num_images, context.images["train"].counts())
    actor = (4.0 * width * subgroups + kept) / context.machine.shards + products + MIN_ROWS_BYTES
    bound = trws_memory(config.select, classes, config.select.subgroups or config.sample.subgroups, width)
    memory, driver = max(actor, bound), context.num_candidates * KEY_BYTES + 4.0 * width * subgroups
    return Cost(subgroups, disk=1e4, memory=memory, driver=driver)


STAGE = Stage(
    name="select",
    output="selection",
    version=5,
    inputs=("candidates", "features"),
    unit="subgroups",
    is_enabled=lambda context: context.config.makes_candidates,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=lambda context: GpuUsage(context.machine.shards),
    metrics=_figures,
)
