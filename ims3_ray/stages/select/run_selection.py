"""S³ on a cluster, for anybody's candidates: select on the actor pool, certify, say it as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Concatenate, NotRequired, ParamSpec, TypedDict, TypeVar

import numpy as np
import ray

from ims3_ray.cluster.resources import DEFAULT_PLACEMENT, Machine
from ims3_ray.config.sections import Select
from ims3_ray.errors import InputError
from ims3_ray.method.s3.distributed_descent import Ask, Joined, Shards, fetch_pools, solve
from ims3_ray.method.s3.image_selection import ImageShard, JoinedImages, solve_images
from ims3_ray.method.s3.objective import CoincidentError, Selection
from ims3_ray.method.s3.proof.bound import TaskRunner, certify
from ims3_ray.method.s3.proof.branch_and_bound import MAX_ROWS, branch_and_bound
from ims3_ray.method.s3.shard import Shard
from ims3_ray.progress import timed

from .candidates import Candidates
from .shard_actors import ClassRange, ShardPool, Source, of_groups, of_images

PROVED_SUBGROUPS = 200  # in all, up to which solver=auto is exact
CPUS_PER_TASK = 0.5  # fits beside the shards on a machine of one core
P = ParamSpec("P")
Answer = TypeVar("Answer")
Asked = TypeVar("Asked")


class OfClass(TypedDict):
    subgroups: list[int]
    distances_to_real: list[float]  # of each
    distance_to_real: float  # of what is selected


class Document(TypedDict):
    """selection.json: what is selected, how good that is, and how it was made."""

    unit: str
    objective: float
    terms: dict[str, float]
    start_objective: float
    lower_bound: float | None
    gap: float | None
    gap_of_gain: float | None
    certificate: str
    solver: str
    rounds: int
    settings: dict[str, object]
    subgroup_selection: NotRequired[dict[str, float] | None]  # of the same pool, where images are selected
    selection: dict[str, object]  # by class: a subgroup, or (subgroup, index) of each image
    per_class: dict[str, OfClass]


@dataclass(frozen=True)
class Outcome:
    """A selection, by how many actors, from how many subgroups."""

    document: Document
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
    """Select from a pool of candidates. `names` are the classes' where the tables hold class ids 0, 1, …

    Raises InputError for settings that do not fit the pool, for features that are no use, and where ε is 0
    and two centroids coincide.
    """
    num_subgroups = int(pool.num_subgroups.sum())
    if settings.solver == "exact" and num_subgroups > MAX_ROWS:
        raise InputError(
            f"select.solver: exact takes up to {MAX_ROWS} subgroups in all, here are {num_subgroups}; "
            "use rounds"
        )
    names = names or tuple(map(str, pool.classes))
    fewest = int(pool.num_images.argmin())
    if settings.unit == "image" and ipc > pool.num_images[fewest]:
        raise InputError(
            f"ipc: {ipc} images are more than the {pool.num_images[fewest]} candidates of class "
            f"{names[fewest]!r}"
        )
    source = Source(pool, names, settings, ipc, seed)
    with timed("select") as shown:
        tell = partial(shown.set_postfix_str, refresh=False)
        tell("reading features")
        try:
            return _select(source, ShardPool(source, machine), tell)
        except CoincidentError as error:
            raise InputError(f"select.{error.explain(lambda i: repr(source.names[i]))}") from error


def _select(source: Source, pool: ShardPool, tell: Callable[[str], object]) -> Outcome:
    settings, groups = source.settings, Joined(_telling(pool.asking(of_groups), tell, "subgroups"))
    subgroups = list(chain(*pool.ask(ClassRange.subgroups)))  # the first question reads the features
    distances = list(chain(*pool.ask(ClassRange.distances)))
    run = run_here if pool.is_here else run_tasks
    selection = _solve(source, pool, groups, run)
    places: list[object] = [int(ids[g]) for ids, g in zip(subgroups, selection.choice, strict=True)]
    nearness = [float(d[g]) for d, g in zip(distances, selection.choice, strict=True)]
    of_groups_alone: dict[str, float] | None = None
    if settings.unit == "image":
        images = JoinedImages(_telling(pool.asking(of_images), tell, "images"))
        selection, of_groups_alone = _select_images(source, pool, images, selection)
        places = [rows.tolist() for rows in chain(*pool.ask(ClassRange.places, selection.choice))]
        centroids = images.centroids(selection.choice).astype(np.float64)
        real = np.concatenate(pool.ask(ClassRange.real_centroids))
        nearness = (1 - np.einsum("cd,cd->c", centroids, real)).tolist()
    else:
        tell("bounding the objective")
        selection = certify(selection, groups, source.objective, method=settings.lower_bound, run=run)
    of_classes = (
        OfClass(subgroups=ids.tolist(), distances_to_real=d.tolist(), distance_to_real=near)
        for ids, d, near in zip(subgroups, distances, nearness, strict=True)
    )
    terms = selection.terms
    document = Document(
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
        per_class=dict(zip(source.names, of_classes, strict=True)),
    )
    if settings.unit == "image":
        document["subgroup_selection"] = of_groups_alone
    return Outcome(document, len(pool.ranges), sum(map(len, subgroups)))


def _solve(source: Source, pool: ShardPool, groups: Shards, run: TaskRunner) -> Selection:
    settings = source.settings
    restarts = {"restarts": settings.restarts, "seed": source.seed}
    if not is_proved(settings, int(source.pool.num_subgroups.sum())):
        return solve(groups, source.objective, **restarts)
    candidates = fetch_pools(groups, 0, len(source.names), groups.sizes())
    real = np.concatenate(pool.ask(ClassRange.real_centroids))
    return run(partial(branch_and_bound, **restarts), [(candidates, real, source.objective)])[0]


def is_proved(settings: Select, num_subgroups: int) -> bool:
    """Whether branch and bound selects: where it is asked for, or takes a second or two at most."""
    automatic = (settings.solver, settings.lower_bound, settings.unit) == ("auto", "auto", "subgroup")
    return settings.solver == "exact" or (automatic and num_subgroups <= PROVED_SUBGROUPS)


def _select_images(
    source: Source, pool: ShardPool, images: JoinedImages, groups: Selection
) -> tuple[Selection, dict[str, float] | None]:
    """Swaps of single images, from those of the selected subgroups `groups` where these have ipc images each.

    Gives the selection, and the same objective of the selected subgroups.
    """
    members = list(chain(*pool.ask(ClassRange.images_of, groups.choice)))
    objective, start, of_groups = source.objective, None, None
    if all(len(rows) == source.ipc for rows in members):
        start = np.stack(members)
        covered = float(images.own_terms(start)[:, 1].sum())
        of_groups = {"objective": groups.objective - objective.coverage * covered, "coverage": covered}
    return solve_images(images, objective, start=start), of_groups


def run_here(function: Callable[..., Answer], arguments: Sequence[tuple[object, ...]]) -> list[Answer]:
    """Without a task: where the selection itself is in this process, none should wait for a core."""
    return [function(*values) for values in arguments]


def run_tasks(function: Callable[..., Answer], arguments: Sequence[tuple[object, ...]]) -> list[Answer]:
    """Results of `function` on each tuple of `arguments`, in order, each a Ray task."""
    return ray.get([_task.remote(function, *values) for values in arguments])


@ray.remote(num_cpus=CPUS_PER_TASK, **DEFAULT_PLACEMENT)
def _task(function: Callable[..., Answer], *arguments: object) -> Answer:
    return function(*arguments)


def _telling(ask: Ask[Asked], tell: Callable[[str], object], what: str) -> Ask[Asked]:
    """The same; tells of every round."""
    rounds = count(1)

    def told(
        method: Callable[Concatenate[Asked, P], Answer], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[Answer]:
        if method in (Shard.propose, ImageShard.propose):
            tell(f"choosing {what}, round {next(rounds)}")
        return ask(method, *args, **kwargs)

    return told
