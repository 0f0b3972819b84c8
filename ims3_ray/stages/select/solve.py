"""S³ on a cluster, for anybody's candidates: check the tables, select on the actor pool, certify, and say it
as data.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from ims3_ray.cluster.machine import ANYWHERE, Machine
from ims3_ray.config.sections import Select
from ims3_ray.errors import InputError
from ims3_ray.method.s3.objective import CoincidentError, Selection
from ims3_ray.method.s3.proof.bound import certify, make_groups, split_groups
from ims3_ray.method.s3.proof.branch_and_bound import MOST_ROWS, branch_and_bound
from ims3_ray.method.s3.rounds import solve
from ims3_ray.method.s3.shard import fetch_pools
from ims3_ray.method.s3.single_images import solve_images
from ims3_ray.progress import bar

from .features import Candidates
from .pool import ShardPool, Source

PROVED_SUBGROUPS = 200  # in all, up to which solver=auto is exact
CPUS_PER_TASK = 0.5  # fits beside the shards on a machine of one core


@dataclass(frozen=True)
class Selected:
    """What was selected, as selection.json says it, by how many actors, from how many subgroups."""

    document: dict[str, Any]
    shards: int
    subgroups: int


def select_features(
    pool: Candidates,
    settings: Select,
    *,
    ipc: int,
    seed: int,
    machine: Machine,
    names: tuple[str, ...] | None = None,
) -> Selected:
    """Select from a pool of candidates. `names` are the classes' names where the tables hold class ids 0, 1,
    …

    Raises InputError for settings that do not fit the pool, for features that are no use, and where ε is 0
    and two centroids coincide.
    """
    num_subgroups = int(pool.num_subgroups.sum())
    if settings.solver == "exact" and num_subgroups > MOST_ROWS:
        raise InputError(
            f"select.solver: exact takes up to {MOST_ROWS} subgroups in all, here are {num_subgroups}; use rounds"
        )
    names = names or tuple(map(str, pool.classes))
    fewest = int(pool.num_images.argmin())
    if settings.unit == "image" and ipc > pool.num_images[fewest]:
        raise InputError(
            f"ipc: {ipc} images are more than the {pool.num_images[fewest]} candidates of class {names[fewest]!r}"
        )
    source = Source(pool, names, settings, ipc, seed)
    with bar("select", None, "rounds") as shown:
        try:
            return _select(source, ShardPool(source, machine), shown)
        except CoincidentError as error:
            raise InputError(f"select.{error.explain(lambda i: repr(source.names[i]))}") from error


def _select(source: Source, pool: ShardPool, shown: Any) -> Selected:
    ask, groups = pool.call("range"), _counting(pool.call("groups"), shown)
    # the first question reads the features
    subgroups = [ids for of_actor in ask("subgroups") for ids in of_actor]
    distances = [d for of_actor in ask("distances") for d in of_actor]
    run = run_here if pool.is_here else run_tasks
    selection = _solve(source, ask, groups, run)
    chosen: dict[str, Any] = {}
    per_class: dict[str, Any] = {}
    for name, ids, d, g in zip(source.names, subgroups, distances, selection.choice, strict=True):
        chosen[name] = int(ids[g])
        per_class[name] = {
            "subgroups": ids.tolist(),
            "distances_to_real": d.tolist(),
            "distance_to_real": float(d[g]),
        }
    compared: dict[str, Any] = {}
    if source.settings.unit == "image":
        selection, compared, chosen, found = _select_images(source, pool, selection, shown)
        for name, distance in zip(source.names, found, strict=True):
            per_class[name]["distance_to_real"] = distance
    elif source.settings.certify != "none":
        selection = certify_pool(groups, selection, source, run)
    document = describe(selection, source) | compared | {"selection": chosen, "per_class": per_class}
    return Selected(document, len(pool.ranges), sum(map(len, subgroups)))


def _solve(source: Source, ask: Any, groups: Any, run: Any) -> Selection:
    restarts = {"restarts": source.settings.restarts, "seed": source.seed}
    if not _is_exact(source.settings, int(source.pool.num_subgroups.sum())):
        return solve(groups, source.objective, walked=source.settings.neighbours is None, **restarts)
    held = fetch_pools(groups, 0, len(source.names), np.concatenate(groups("sizes")))
    return run(
        branch_and_bound, [(held, np.concatenate(ask("real_centroids")), source.objective)], **restarts
    )[0]


def _is_exact(settings: Select, num_subgroups: int) -> bool:
    """Whether branch and bound selects: where asked for, or where a proof costs a second or two at most."""
    plain = settings.unit == "subgroup" and settings.partners == "selected" and settings.neighbours is None
    proved = settings.solver == "auto" and settings.certify == "auto" and num_subgroups <= PROVED_SUBGROUPS
    return settings.solver == "exact" or (plain and proved)


def describe(selection: Selection, source: Source) -> dict[str, Any]:
    """What selection.json says of how good the selection is, and how it was made."""
    terms = selection.terms
    return {
        "unit": source.settings.unit,
        "objective": selection.objective,
        "terms": {"attraction": terms.attraction, "separation": terms.separation, "coverage": terms.coverage},
        "start_objective": selection.start,
        "lower_bound": selection.lower_bound,
        "gap": selection.gap,
        "gap_of_gain": selection.gap_of_gain,
        "certificate": selection.certificate,
        "solver": selection.solver,
        "rounds": selection.rounds,
        "settings": source.settings.model_dump(mode="json", exclude={"memory"}) | {"seed": source.seed},
    }


def _select_images(
    source: Source, pool: ShardPool, groups: Selection, shown: Any
) -> tuple[Selection, dict[str, Any], dict[str, list], list[float]]:
    """Swaps of single images, from those of the selected subgroups `groups` where these have ipc images each.

    Gives the selection, the same objective of the selected subgroups, (subgroup, index) of the chosen images
    by class, and the distance of each class's centroid to its real one.
    """
    ask, images = pool.call("range"), _counting(pool.call("images"), shown)
    members = [rows for of_actor in ask("images_of", groups.choice) for rows in of_actor]
    coverage, start, compared = source.settings.coverage, None, None
    if all(len(rows) == source.ipc for rows in members):
        start = np.stack(members)
        covered = float(np.concatenate(images("own_terms", start))[:, 1].sum())
        compared = {"objective": groups.objective - coverage * covered, "coverage": covered}
    selection = solve_images(images, source.objective, start=start, coverage=coverage)
    places = [rows.tolist() for of_actor in ask("places", selection.choice) for rows in of_actor]
    centroids = np.concatenate(images("centroids", selection.choice)).astype(np.float64)
    distances = 1 - np.einsum("cd,cd->c", centroids, np.concatenate(ask("real_centroids")))
    chosen = dict(zip(source.names, places, strict=True))
    return selection, {"subgroup_selection": compared}, chosen, distances.tolist()


def certify_pool(groups: Any, selection: Selection, source: Source, run: Any = None) -> Selection:
    """The selection with its lower bound, computed on groups of classes by `run`, in tasks where None."""
    if selection.lower_bound is not None:
        return selection
    attractions, sizes = np.concatenate(groups("attractions")), np.concatenate(groups("sizes"))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    shared = []
    for ids in split_groups(len(sizes)):  # one group at a time goes through the driver
        pools = fetch_pools(groups, ids.start, ids.stop, sizes)
        held = make_groups(pools, attractions[offsets[ids.start] : offsets[ids.stop]])
        shared.append(ray.put(replace(held[0], first_class=ids.start)))
    return certify(selection, shared, source.objective, method=source.settings.certify, run=run or run_tasks)


def run_here(function: Any, arguments: list[tuple], **options: Any) -> list[Any]:
    """`run_tasks` without a task: where the selection itself is in this process, none should wait for a core."""
    return [
        function(*(ray.get(v) if isinstance(v, ray.ObjectRef) else v for v in values), **options)
        for values in arguments
    ]


def run_tasks(function: Any, arguments: list[tuple], **options: Any) -> list[Any]:
    """Results of `function` on each tuple of `arguments`, in order, each a Ray task."""
    return ray.get([_task.remote(function, options, *values) for values in arguments])


@ray.remote(num_cpus=CPUS_PER_TASK, **ANYWHERE)
def _task(function: Any, options: dict[str, Any], *arguments: Any) -> Any:
    return function(*arguments, **options)


def _counting(call: Any, shown: Any) -> Any:
    """The same call; its rounds move the bar."""

    def counted(method: str, *arguments: Any) -> list[Any]:
        answers = call(method, *arguments)
        shown.update(method == "propose")
        return answers

    return counted
