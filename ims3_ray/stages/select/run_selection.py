"""Run S³ on the actor pool for any table of candidates: select, certify, and describe the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np

from ims3_ray.cluster.resources import Machine
from ims3_ray.cluster.tasks import map_in_order
from ims3_ray.config.sections import Select
from ims3_ray.errors import InputError
from ims3_ray.method.s3.bound import certify
from ims3_ray.method.s3.branch_and_bound import MAX_ROWS
from ims3_ray.method.s3.image_selection import ImageShards, solve_images
from ims3_ray.method.s3.objective import CoincidentError, Selection
from ims3_ray.method.s3.selection import is_exact, minimise, run_here
from ims3_ray.progress import timed
from ims3_ray.storage.schemas import SelectedClass, SelectionFile

from .candidates import Candidates, SelectionInput
from .shard_actors import ActorImageShards, ActorShards, ShardPool

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Outcome:
    """A selection, with the number of shards and of subgroups that it took."""

    document: SelectionFile
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
) -> Outcome:
    """Select from a pool of candidates. `names` are the class names, if the tables hold class ids 0, 1, …

    Raises InputError if the settings do not fit the pool, if features are unusable, and if ε is 0 and two
    centroids coincide.
    """
    num_subgroups = int(pool.num_subgroups.sum())
    if settings.solver == "exact" and num_subgroups > MAX_ROWS:
        raise InputError(
            f"select.solver: exact takes at most {MAX_ROWS} subgroups, not {num_subgroups}; use rounds"
        )
    names = names or tuple(map(str, pool.classes))
    fewest = int(pool.num_images.argmin())
    if settings.unit == "image" and ipc > pool.num_images[fewest]:
        raise InputError(
            f"ipc: {ipc} images are more than the {pool.num_images[fewest]} candidates of class "
            f"{names[fewest]!r}; lower it, or draw more (sample.subgroups, sample.pool_ipc)"
        )
    source = SelectionInput(pool, names, settings, ipc, seed)
    with timed("select") as progress:
        report = partial(progress.set_postfix_str, refresh=False)
        report("reading features")
        try:
            return _select(source, ShardPool(source, machine), report)
        except CoincidentError as error:
            raise InputError(f"select.{error.explain(lambda i: repr(source.names[i]))}") from error


def _select(source: SelectionInput, pool: ShardPool, report: Callable[[str], object]) -> Outcome:
    settings, groups = source.settings, ActorShards(pool, report)
    # the first call reads the features
    subgroups = list(chain(*pool.each(lambda classes: classes.subgroups())))
    distances = list(chain(*pool.each(lambda classes: classes.distances())))
    run, lower_bound = run_here if pool.is_local else run_tasks, settings.lower_bound
    if settings.unit == "image":
        lower_bound = "none"  # the bound is of subgroups
    exact = is_exact(settings.solver, lower_bound, int(source.pool.num_subgroups.sum()))
    selection = minimise(
        groups, source.objective, exact=exact, restarts=settings.restarts, seed=source.seed, run=run
    )
    places: list[int | list[list[int]]] = [
        int(ids[g]) for ids, g in zip(subgroups, selection.choice, strict=True)
    ]
    nearness = [float(d[g]) for d, g in zip(distances, selection.choice, strict=True)]
    subgroup_selection: dict[str, float] | None = None
    if settings.unit == "image":
        images = ActorImageShards(pool, report)
        selection, subgroup_selection = _select_images(source, pool, images, selection)
        choice = selection.choice
        places = [rows.tolist() for rows in chain(*pool.each(lambda classes: classes.places(choice)))]
        centroids = images.centroids(choice).astype(np.float64)
        nearness = (1 - np.einsum("cd,cd->c", centroids, groups.real())).tolist()
    else:
        report("bounding the objective")
        selection = certify(selection, groups, source.objective, method=lower_bound, run=run)
    results = (
        SelectedClass(subgroups=ids.tolist(), distances_to_real=d.tolist(), distance_to_real=near)
        for ids, d, near in zip(subgroups, distances, nearness, strict=True)
    )
    terms = selection.terms
    document = SelectionFile(
        unit=settings.unit,
        objective=selection.objective,
        terms={name: getattr(terms, name) for name in ("attraction", "separation", "coverage")},
        start_objective=selection.start,
        lower_bound=selection.lower_bound,
        gap=selection.gap,
        gap_of_gain=selection.gap_of_gain,
        certificate=selection.certificate,
        solver=selection.solver,
        rounds=selection.rounds,
        settings={**settings.model_dump(mode="json", exclude={"memory_gb"}), "seed": source.seed},
        selection=dict(zip(source.names, places, strict=True)),
        per_class=dict(zip(source.names, results, strict=True)),
    )
    if settings.unit == "image":
        document["subgroup_selection"] = subgroup_selection
    return Outcome(document, len(pool.ranges), sum(map(len, subgroups)))


def _select_images(
    source: SelectionInput, pool: ShardPool, images: ImageShards, groups: Selection
) -> tuple[Selection, dict[str, float] | None]:
    """Swap single images, starting from the selected subgroups `groups` if all have ipc images.

    Returns the selection, and the same objective and coverage of the selected subgroups.
    """
    members = list(chain(*pool.each(lambda classes: classes.images_of(groups.choice))))
    objective, start, subgroup_selection = source.objective, None, None
    if all(len(rows) == source.ipc for rows in members):
        start = np.stack(members)
        covered = float(images.own_terms(start)[:, 1].sum())
        subgroup_selection = {
            "objective": groups.objective - objective.coverage * covered,
            "coverage": covered,
        }
    return solve_images(images, objective, start=start), subgroup_selection


def run_tasks(function: Callable[..., Answer], arguments: Sequence[tuple[object, ...]]) -> list[Answer]:
    """Return `function` of each tuple of `arguments`, in order, each computed by a Ray task."""
    return list(map_in_order(function, arguments, max(1, len(arguments))))
