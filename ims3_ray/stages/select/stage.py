"""Stage select: choose one subgroup per class by S³ (Eq. 8–11) from features. Writes a selection."""

from ims3_ray.config.settings import Config
from ims3_ray.stages.base import KEY_BYTES, Cost, Forward, GpuUsage, Stage
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .candidates import open_candidates
from .run_selection import select_features
from .shard_actors import MIN_ROWS_BYTES, trws_memory


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


def _subgroups_per_class(config: Config) -> int:
    return min(config.sample.subgroups, config.select.subgroups or config.sample.subgroups)


def _cost(context: Context, forward: Forward) -> Cost:
    subgroups, row = len(context.classes) * context.config.sample.subgroups, 4.0 * forward.feature_dim
    rows = context.num_candidates if context.config.select.unit == "image" else subgroups
    sizes = len(context.classes), _subgroups_per_class(context.config), forward.feature_dim
    memory = max(
        rows * row / context.machine.shards + MIN_ROWS_BYTES, trws_memory(context.config.select, *sizes)
    )
    driver = context.num_candidates * KEY_BYTES + subgroups * row
    return Cost(subgroups, disk=1e4, memory=memory, driver=driver)


STAGE = Stage(
    name="select",
    output="selection",
    version=5,
    inputs=("candidates", "features"),
    unit="subgroups",
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=lambda context: GpuUsage(context.machine.shards),
    metrics=_figures,
)
