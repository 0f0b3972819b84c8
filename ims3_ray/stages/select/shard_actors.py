"""The S³ actor pool: classes are split over Ray actors, and each actor reads the features of its own classes.

Features are read in portions that fit the actor's memory. An answer depends on the arguments of a call only,
so Ray can restart a killed actor: it reads the same files and gives the same answer.
"""

import math
from collections.abc import Callable
from itertools import count
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import ray

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.sections import Select
from ims3_ray.errors import InputError
from ims3_ray.method.coverage import find_copies
from ims3_ray.method.s3 import trws
from ims3_ray.method.s3.distributed_descent import fetch_pools
from ims3_ray.method.s3.image_coverage import closeness_table
from ims3_ray.method.s3.image_selection import ImageShard
from ims3_ray.method.s3.objective import real_centroid, subgroup_centroids, unit_rows
from ims3_ray.method.s3.shard import History, Moves, Shard, split_classes
from ims3_ray.method.seeding import permutation

from .candidates import SelectionInput
from .features import Keys

CPUS_PER_SHARD = 0.5
MAX_CPU_SHARE = 0.5  # that all shards may reserve: the certificate's tasks need the rest
ANSWER_TIMEOUT_S = 3600  # a pool that can no longer be placed would block for ever
PROCESS_BYTES = 4e8  # an actor without data: Ray, numpy, pyarrow, faiss
MIN_ROWS_BYTES = 1e8  # for the rows that are being read
COPIES_OF_CHOSEN = 4  # centroids of all classes: the round's, the shard's own, and work space
COPIES_OF_ROWS = 12  # of a row while it is read: Arrow's, float32, float64; of candidates and of real images
Answer = TypeVar("Answer")


class ClassRange:
    """The classes `ids` of a selection, in the memory of one actor.

    `groups` has their subgroups; `images` has their images, if select.unit is image.
    """

    images: ImageShard

    def __init__(self, source: SelectionInput, ids: range, rows: int):
        """Read and average the features of the classes, at most `rows` rows at a time."""
        self.source, self._ids = source, slice(ids.start, ids.stop)
        self._keys: list[Keys] = []
        self._subgroups: list[np.ndarray] = []
        centroids: list[np.ndarray] = []
        images: list[np.ndarray] = []
        real_centroids: list[np.ndarray] = []
        covers: list[np.ndarray] = []
        settings = source.settings
        values = source.pool.classes[self._ids]
        tables = source.pool.candidates.read(values, rows), source.pool.real.read(values, rows)
        for name, (keys, features), (_, all_real) in zip(source.names[self._ids], *tables, strict=True):
            label = f"candidates of class {name!r}"
            try:
                subgroups, of_class = subgroup_centroids(features, keys["subgroup"], label=label)
            except ValueError as error:  # features that cancel out
                raise InputError(str(error)) from error
            self._subgroups.append(subgroups)
            centroids.append(of_class)
            real = all_real[permutation(len(all_real), "real", source.seed, name)[: settings.real_images]]
            real_centroids.append(real_centroid(real, label=f"real images of class {name!r}"))
            if settings.unit == "subgroup":
                continue
            if settings.exclude_copies:
                keys, features = self._without_copies(keys, features, all_real, name)
            self._keys.append(keys)
            images.append(unit_rows(features, label).astype(np.float32))
            if settings.coverage:
                unit_real = unit_rows(real, f"real images of class {name!r}").astype(np.float32)
                covers.append(closeness_table(unit_real, images[-1]))
        shared = np.stack(real_centroids), source.objective, len(source.names)
        self.groups = Shard(ids.start, centroids, *shared)
        if images:
            self.images = ImageShard(ids.start, images, *shared, source.ipc, covers or None)

    def subgroups(self) -> list[np.ndarray]:
        """Return the ascending subgroup ids (G_i,) of each class."""
        return self._subgroups

    def distances(self) -> list[np.ndarray]:
        """Return 1 - c·r (G_i,) of each class."""
        pools = fetch_pools(self.groups, self.groups.sizes())
        return [1 - pool.astype(np.float64) @ r for pool, r in zip(pools, self.groups.real(), strict=True)]

    def images_of(self, choice: np.ndarray) -> list[np.ndarray]:
        """Return per class the rows (K_i,) of the images of the subgroup that `choice` (C,) selects."""
        own = [ids[g] for ids, g in zip(self._subgroups, choice[self._ids], strict=True)]
        return [np.flatnonzero(keys["subgroup"] == g) for keys, g in zip(self._keys, own, strict=True)]

    def places(self, choice: np.ndarray) -> list[np.ndarray]:
        """Return per class (subgroup, index), as (K, 2), of the images that `choice` (C, K) selects."""
        own = zip(self._keys, choice[self._ids], strict=True)
        return [np.stack([keys["subgroup"][rows], keys["index"][rows]], axis=1) for keys, rows in own]

    def _without_copies(
        self, keys: Keys, features: np.ndarray, real: np.ndarray, name: str
    ) -> tuple[Keys, np.ndarray]:
        """Drop candidates that copy real images. Raises InputError if fewer than ipc are left."""
        if len(real) < 2:
            raise InputError(
                f"select.exclude_copies: needs two real images per class; class {name!r} has {len(real)}"
            )
        is_new = ~find_copies(real, features)[1]
        if is_new.sum() < self.source.ipc:
            raise InputError(
                f"select.exclude_copies: class {name!r} has {is_new.sum()} candidates that copy no real "
                f"image, ipc needs {self.source.ipc}; draw more (sample.subgroups, sample.pool_ipc)"
            )
        return {key: column[is_new] for key, column in keys.items()}, features[is_new]


@ray.remote(max_restarts=-1, max_task_retries=-1)
class ShardActor:
    """Holds a ClassRange. Each call carries what to read, since Ray may restart the actor at any time."""

    def __init__(self):
        self._classes: ClassRange | None = None

    def call(
        self, source: SelectionInput, ids: range, rows: int, function: Callable[[ClassRange], Answer]
    ) -> Answer:
        """Return `function` of the range; the first call reads the features."""
        self._classes = self._classes or ClassRange(source, ids, rows)
        return function(self._classes)


class ShardPool:
    """The actors of a selection, each with a range of classes.

    With workers.shards=1 and enough memory for one shard, this process holds it and there is no actor:
    starting one takes longer than a small selection, and a sweep makes many.
    """

    def __init__(self, source: SelectionInput, machine: Machine):
        """Start as many actors as the machine suggests, or more if select.memory_gb demands it."""
        shards, self._rows = split(source, machine.shards)
        check_bound(source)
        self.ranges = split_classes(len(source.names), shards)
        self.is_local = machine.workers.shards == len(self.ranges) == 1
        if self.is_local:
            self._local = ClassRange(source, self.ranges[0], self._rows)
            return
        cpus = min(CPUS_PER_SHARD, MAX_CPU_SHARE * machine.cpus / len(self.ranges))
        self._source = ray.put(source)
        self._actors = [ShardActor.options(num_cpus=cpus).remote() for _ in self.ranges]

    def each(self, function: Callable[[ClassRange], Answer]) -> list[Answer]:
        """Return `function` of every range, in the order of the classes: one round trip."""
        if self.is_local:
            return [function(self._local)]
        return ray.get(self.submit(function), timeout=ANSWER_TIMEOUT_S)

    def submit(self, function: Callable[[ClassRange], Answer]) -> list["ray.ObjectRef[Answer]"]:
        """Call `function` on every actor; return handles of the answers, in the order of the classes."""
        shared = ray.put(function)  # with its data: once, not once per actor
        calls = zip(self._actors, self.ranges, strict=True)
        return [actor.call.remote(self._source, ids, self._rows, shared) for actor, ids in calls]  # pyright: ignore


class _ActorParts:
    """The `part` of every range in the actors of a pool; `report` receives a line per round."""

    kind: str  # "subgroups" or "images"
    part: Callable[[ClassRange], Any]

    def __init__(self, pool: ShardPool, report: Callable[[str], object] = lambda _: None):
        self._pool, self._report, self._rounds = pool, report, count(1)

    def centroids(self, choice: np.ndarray) -> np.ndarray:
        return self._join(lambda shard: shard.centroids(choice))

    def propose(self, history: History, tolerance: float) -> Moves:
        self._report(f"choosing {self.kind}, round {next(self._rounds)}")
        part = self.part  # without self, which holds a progress bar
        return Moves.join(self._pool.each(lambda classes: part(classes).propose(history, tolerance)))

    def _join(self, function: Callable[[Any], np.ndarray]) -> np.ndarray:
        part = self.part
        return np.concatenate(self._pool.each(lambda classes: function(part(classes))))


class ActorShards(_ActorParts):
    """`Shards` of subgroups in the actors of a pool."""

    kind, part = "subgroups", attrgetter("groups")

    def sizes(self) -> np.ndarray:
        return self._join(lambda shard: shard.sizes())

    def attractions(self) -> np.ndarray:
        return self._join(lambda shard: shard.attractions())

    def real(self) -> np.ndarray:
        return self._join(lambda shard: shard.real())

    def candidates(self) -> np.ndarray:
        return self._join(lambda shard: shard.candidates())

    def series_bounds(self, choice: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return self._join(lambda shard: shard.series_bounds(choice, chosen))


class ActorImageShards(_ActorParts):
    """`ImageShards` in the actors of a pool."""

    kind, part = "images", attrgetter("images")

    def closest(self) -> np.ndarray:
        return self._join(lambda shard: shard.closest())

    def own_terms(self, choice: np.ndarray) -> np.ndarray:
        return self._join(lambda shard: shard.own_terms(choice))


def split(source: SelectionInput, at_least: int) -> tuple[int, int]:
    """Return the number of shards that keeps each actor within select.memory_gb, and its rows per read.

    Raises InputError if the smallest possible shards, one per tile of classes, exceed it.
    """
    pool = source.pool
    row = 4 * pool.candidates.width
    num_real = np.array([pool.real.counts[name] for name in pool.classes])
    kept, products = image_bytes(source.settings, pool.candidates.width, pool.num_images, num_real)
    total = pool.num_subgroups.sum() * row + kept
    fixed = PROCESS_BYTES + COPIES_OF_CHOSEN * len(source.names) * row + products
    reading = max(MIN_ROWS_BYTES, COPIES_OF_ROWS * row * int(pool.num_images.max()))
    budget = source.settings.memory_gb * 1e9
    shards = at_least
    while True:
        ranges = split_classes(len(source.names), shards)
        largest = max(len(ids) for ids in ranges) / len(source.names) * total
        if fixed + reading + largest <= budget:
            return len(ranges), int((budget - fixed - largest) / (COPIES_OF_ROWS * row))
        if len(ranges) < shards:
            needed = (fixed + reading + largest) / 1e9
            raise InputError(
                f"select.memory_gb: {source.settings.memory_gb} GB per actor is too little; set {needed:.1f}"
            )
        shards += 1


def image_bytes(
    settings: Select, width: int, num_images: np.ndarray, num_real: np.ndarray
) -> tuple[float, float]:
    """Return the bytes of all classes' images with coverage, and of the products in the largest class.

    Both are 0 if subgroups are selected. `num_images` and `num_real` (C,) are candidates and real images.
    """
    if settings.unit == "subgroup":
        return 0.0, 0.0
    covered = np.minimum(num_real, settings.real_images or np.inf) if settings.coverage else 0
    # rows in float32, coverage in float64; products in both
    return float((num_images * (4.0 * width + 8.0 * covered)).sum()), 12.0 * float(num_images.max()) ** 2


def check_bound(source: SelectionInput) -> None:
    """Raise InputError if the lower bound by TRW-S would exceed select.memory_gb or its maximum size."""
    settings, num_classes, size = source.settings, len(source.names), int(source.pool.num_subgroups.max())
    if (settings.lower_bound, settings.unit) == ("trws", "subgroup") and not trws.fits(num_classes, size):
        raise InputError(
            f"select.lower_bound: trws takes at most {trws.MAX_PLACES} classes × subgroups, not "
            f"{num_classes} × {size}; use series"
        )
    needed = PROCESS_BYTES + trws_memory(settings, num_classes, size, source.pool.candidates.width)
    if needed > settings.memory_gb * 1e9:
        raise InputError(
            f"select.memory_gb: {settings.memory_gb} GB is too little for the lower bound by TRW-S; set "
            f"{math.ceil(needed / 1e8) / 10}, or select.lower_bound=series"
        )


def trws_memory(settings: Select, num_classes: int, size: int, width: int) -> float:
    """Return the bytes of the TRW-S task, which holds all classes; 0 if it does not run."""
    may_run = settings.unit == "subgroup" and settings.lower_bound in ("auto", "trws")
    return trws.memory(num_classes, size, width) if may_run and trws.fits(num_classes, size) else 0.0
