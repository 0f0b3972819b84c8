"""The S³ actor pool: classes split over actors, each with the centroids of its own, read from Parquet.

An actor reads the features of its own classes alone, in portions that fit its memory. Its answers depend on
the arguments of a call alone: a killed actor is started again by Ray, reads the same files and answers the
same.
"""

import math
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import ray

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.sections import Select
from ims3_ray.errors import InputError
from ims3_ray.method.coverage import find_copies
from ims3_ray.method.s3.distributed_descent import Ask
from ims3_ray.method.s3.image_selection import ImageShard, ball_table, closeness_table
from ims3_ray.method.s3.objective import Objective, real_centroid, subgroup_centroids, unit_rows
from ims3_ray.method.s3.proof import trws
from ims3_ray.method.s3.shard import Shard, split_classes
from ims3_ray.method.seeding import permutation

from .candidates import Candidates
from .features import Keys

CPUS_PER_SHARD = 0.5
SHARE_OF_CPUS = 0.5  # that all shards may reserve: the certificate's tasks need the rest
ANSWER_WITHIN_S = 3600  # a pool that can't be placed any more would block for ever
PROCESS_BYTES = 4e8  # an actor without data: Ray, numpy, pyarrow, faiss
LEAST_ROWS_BYTES = 1e8  # for the rows that are being read
COPIES_OF_CHOSEN = 4  # centroids of all classes: the round's, the shard's own, and work space
COPIES_OF_ROWS = 12  # of a row while it is read: Arrow's, float32, double; of candidates and of real images
P = ParamSpec("P")
Answer = TypeVar("Answer")
Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Source:
    """What the actors read, and what they make of it. `names` are the classes', in the order of their ids."""

    pool: Candidates
    names: tuple[str, ...]
    settings: Select
    ipc: int
    seed: int

    @property
    def objective(self) -> Objective:
        s = self.settings
        return Objective(s.alpha, s.beta, s.epsilon, s.normalization, s.coverage)


class ClassRange:
    """The classes `ids` of a source: what an actor holds."""

    def __init__(self, source: Source, ids: range, rows: int):
        """Read and average the features of the classes, `rows` of them at a time."""
        self.source, self._ids = source, slice(ids.start, ids.stop)
        self._keys: list[Keys] = []
        self._subgroups: list[np.ndarray] = []
        centroids: list[np.ndarray] = []
        images: list[np.ndarray] = []
        real: list[np.ndarray] = []
        covers: list[np.ndarray] = []
        settings = source.settings
        values = source.pool.classes[self._ids]
        tables = source.pool.candidates.read(values, rows), source.pool.real.read(values, rows)
        for name, (keys, features), (_, of_real) in zip(source.names[self._ids], *tables, strict=True):
            label = f"candidates of class {name!r}"
            subgroups, of_class = subgroup_centroids(features, keys["subgroup"], label=label)
            self._subgroups.append(subgroups)
            centroids.append(of_class)
            kept = of_real[permutation(len(of_real), "real", source.seed, name)[: settings.real_images]]
            real.append(real_centroid(kept, label=f"real images of class {name!r}"))
            if settings.unit == "subgroup":
                continue
            if settings.exclude_copies:
                keys, features = self._without_copies(keys, features, of_real, name)
            self._keys.append(keys)
            images.append(unit_rows(features, label).astype(np.float32))
            if settings.coverage:
                covers.append(self._covers(images[-1], kept, name))
        self._real, objective, num_classes = np.stack(real), source.objective, len(source.names)
        self.groups = Shard(ids.start, centroids, self._real, objective, num_classes)
        if images:
            shared = images, self._real, objective, num_classes
            self.images = ImageShard(ids.start, *shared, source.ipc, covers or None)

    def subgroups(self) -> list[np.ndarray]:
        """The subgroup ids (G_i,) of each class, ascending, as its candidates stand."""
        return self._subgroups

    def distances(self) -> list[np.ndarray]:
        """1 - c·r (G_i,) of each class."""
        rows = self.groups.candidates(self._ids.start, self._ids.stop)
        pools = np.split(rows, np.cumsum(self.groups.sizes())[:-1])
        return [1 - pool.astype(np.float64) @ r for pool, r in zip(pools, self._real, strict=True)]

    def real_centroids(self) -> np.ndarray:
        """(n, D) float32."""
        return self._real

    def images_of(self, choice: np.ndarray) -> list[np.ndarray]:
        """The places (K_i,), among each class's images, of those of the subgroup that `choice` (C,) has."""
        own = [ids[g] for ids, g in zip(self._subgroups, choice[self._ids], strict=True)]
        return [np.flatnonzero(keys["subgroup"] == g) for keys, g in zip(self._keys, own, strict=True)]

    def places(self, choice: np.ndarray) -> list[np.ndarray]:
        """(subgroup, index), as (K, 2), of the images of each class that `choice` (C, K) selects."""
        own = zip(self._keys, choice[self._ids], strict=True)
        return [np.stack([keys["subgroup"][rows], keys["index"][rows]], axis=1) for keys, rows in own]

    def process(self) -> tuple[int, float]:
        """Process id, and the most memory that the process has held, in bytes."""
        return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0

    def _without_copies(
        self, keys: Keys, features: np.ndarray, real: np.ndarray, name: str
    ) -> tuple[Keys, np.ndarray]:
        """The candidates that are no copies of real images; InputError where fewer than ipc are left."""
        _require_more_than(1, real, "select.exclude_copies", name)
        kept = ~find_copies(real, features)[1]
        if kept.sum() < self.source.ipc:
            raise InputError(
                f"select.exclude_copies: class {name!r} has {kept.sum()} candidates that copy no real image, "
                f"ipc needs {self.source.ipc}; draw more (sample.subgroups, sample.pool_ipc)"
            )
        return {key: column[kept] for key, column in keys.items()}, features[kept]

    def _covers(self, images: np.ndarray, real: np.ndarray, name: str) -> np.ndarray:
        settings = self.source.settings
        real = unit_rows(real, f"real images of class {name!r}").astype(np.float32)
        if settings.coverage_by == "distance":
            return closeness_table(images, real)
        _require_more_than(settings.coverage_neighbours, real, "select.coverage_neighbours", name)
        return ball_table(images, real, settings.coverage_neighbours)


def _require_more_than(k: int, real: np.ndarray, field: str, name: str) -> None:
    if len(real) <= k:
        raise InputError(f"{field}: needs more than {k} real images a class; class {name!r} has {len(real)}")


def of_itself(held: ClassRange) -> ClassRange:
    return held


def of_groups(held: ClassRange) -> Shard:
    return held.groups


def of_images(held: ClassRange) -> ImageShard:
    return held.images


@ray.remote(max_restarts=-1, max_task_retries=-1)
class ShardActor:
    """A ClassRange, read at the first question, which says what to read: an actor may be started again."""

    def __init__(self):
        self._held: ClassRange | None = None

    def ask(
        self,
        source: Source,
        ids: range,
        rows: int,
        part: Callable[[ClassRange], Asked],
        method: Callable[Concatenate[Asked, P], Answer],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Answer:
        """What `method` of a part of the range answers."""
        self._held = self._held or ClassRange(source, ids, rows)
        return method(part(self._held), *args, **kwargs)


class ShardPool:
    """The actors of a source.

    Where one shard is asked for (workers.shards=1) and holds all, this process is it: starting an actor takes
    longer than a small selection, and a sweep makes many.
    """

    def __init__(self, source: Source, machine: Machine):
        """As many actors as the machine suggests, or more where select.memory_gb asks for it."""
        shards, self._rows = split(source, machine.shards)
        check_bound(source)
        self.ranges = split_classes(len(source.names), shards)
        self._here: ClassRange | None = None
        if machine.workers.shards == len(self.ranges) == 1:
            self._here = ClassRange(source, self.ranges[0], self._rows)
            return
        cpus = min(CPUS_PER_SHARD, SHARE_OF_CPUS * machine.cpus / len(self.ranges))
        self._source = ray.put(source)
        self._actors = [ShardActor.options(num_cpus=cpus).remote() for _ in self.ranges]

    @property
    def is_here(self) -> bool:
        """Whether this process is the one shard."""
        return self._here is not None

    def ask(
        self, method: Callable[Concatenate[ClassRange, P], Answer], *args: P.args, **kwargs: P.kwargs
    ) -> list[Answer]:
        """What every range answers, in the order of the classes."""
        return self.asking(of_itself)(method, *args, **kwargs)

    def asking(self, part: Callable[[ClassRange], Asked]) -> Ask[Asked]:
        """`ask` of that part of every range: what Joined takes."""

        def ask(
            method: Callable[Concatenate[Asked, P], Answer], /, *args: P.args, **kwargs: P.kwargs
        ) -> list[Answer]:
            if self._here:
                return [method(part(self._here), *args, **kwargs)]
            return ray.get(self.submit(part, method, *args, **kwargs), timeout=ANSWER_WITHIN_S)

        return ask

    def submit(
        self,
        part: Callable[[ClassRange], Asked],
        method: Callable[Concatenate[Asked, P], Answer],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list["ray.ObjectRef[Answer]"]:
        """Ask that part of every actor; gives handles of the answers, in the order of the classes."""
        shared = [ray.put(argument) for argument in args]  # once, not once an actor
        return [
            actor.ask.remote(  # pyright: ignore[reportFunctionMemberAccess] a handle, which Ray makes
                self._source, ids, self._rows, part, method, *shared, **kwargs
            )
            for actor, ids in zip(self._actors, self.ranges, strict=True)
        ]


def split(source: Source, at_least: int) -> tuple[int, int]:
    """How many shards keep each actor within select.memory_gb, and how many rows it may read at a time.

    Raises InputError where even a shard a tile of classes would not.
    """
    pool = source.pool
    row = 4 * pool.candidates.width
    held = pool.num_subgroups.sum() * row
    if source.settings.unit == "image":
        held += pool.num_images.sum() * row
    fixed = PROCESS_BYTES + COPIES_OF_CHOSEN * len(source.names) * row
    reading = max(LEAST_ROWS_BYTES, COPIES_OF_ROWS * row * int(pool.num_images.max()))
    budget = source.settings.memory_gb * 1e9
    shards = at_least
    while True:
        ranges = split_classes(len(source.names), shards)
        largest = max(len(ids) for ids in ranges) / len(source.names) * held
        if fixed + reading + largest <= budget:
            return len(ranges), int((budget - fixed - largest) / (COPIES_OF_ROWS * row))
        if len(ranges) < shards:
            needed = (fixed + reading + largest) / 1e9
            raise InputError(
                f"select.memory_gb: {source.settings.memory_gb} GB per actor is too little; set {needed:.1f}"
            )
        shards += 1


def check_bound(source: Source) -> None:
    """Raise InputError where the lower bound by TRW-S would exceed select.memory_gb or its size."""
    settings, num_classes, size = source.settings, len(source.names), int(source.pool.num_subgroups.max())
    if (settings.lower_bound, settings.unit) == ("trws", "subgroup") and not trws.fits(num_classes, size):
        raise InputError(
            f"select.lower_bound: trws takes up to {trws.MAX_PLACES} classes × subgroups, here are "
            f"{num_classes} × {size}; use series"
        )
    needed = PROCESS_BYTES + trws_memory(settings, num_classes, size, source.pool.candidates.width)
    if needed > settings.memory_gb * 1e9:
        raise InputError(
            f"select.memory_gb: {settings.memory_gb} GB are too little for the lower bound by TRW-S; set at "
            f"least {math.ceil(needed / 1e8) / 10} GB, or select.lower_bound=series"
        )


def trws_memory(settings: Select, num_classes: int, size: int, width: int) -> float:
    """Bytes of TRW-S, a task of its own that holds all classes; 0 where it isn't taken. The series is the
    actors' work.
    """
    is_taken = settings.unit == "subgroup" and settings.lower_bound in ("auto", "trws")
    return trws.memory(num_classes, size, width) if is_taken and trws.fits(num_classes, size) else 0.0
