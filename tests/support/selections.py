"""Selection problems in memory and in Parquet, shards in this process, and a solver to compare with."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ims3_ray.method.s3.objective import evaluate, log_distances
from ims3_ray.method.s3.shard import Moves, Shard, offsets_of, split_classes

WIDTH, IPC = 8, 3  # of the feature tables


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def problem(sizes, seed=0, noise=0.6, width=24):
    """Candidates (G_i, D) by class around non-negative class means, and these, (C, D)."""
    rng = np.random.default_rng(seed)
    means = np.abs(rng.random(width) + 0.7 * rng.standard_normal((len(sizes), width)))
    pools = [np.abs(m + noise * rng.standard_normal((g, width))) for m, g in zip(means, sizes, strict=True)]
    return [unit(pool) for pool in pools], unit(means)


def free_problem(sizes, seed=0, noise=None, width=24):
    """Candidates by class around real centroids; without any structure where noise is None."""
    rng = np.random.default_rng(seed)
    real = rng.random((len(sizes), width))
    own, other = (0, 1) if noise is None else (1, noise)
    pools = [own * r + other * rng.random((g, width)) for r, g in zip(real, sizes, strict=True)]
    return [unit(pool) for pool in pools], unit(real)


def split_here(build, pools, real, objective, num_shards, *arguments):
    """Shards in this process; `build` makes each, with `arguments` of its slice of the classes."""
    shards = []
    for ids in split_classes(len(pools), num_shards):
        own = slice(ids.start, ids.stop)
        shards.append(
            build(ids.start, pools[own], real[own], objective, len(pools), *(a(own) for a in arguments))
        )
    return shards


class LocalShards:
    """Several shards of this process as one, in the order of their classes."""

    def __init__(self, shards):
        self._shards = shards

    def __getattr__(self, name):
        join = Moves.join if name == "propose" else np.concatenate
        return lambda *arguments: join([getattr(shard, name)(*arguments) for shard in self._shards])


def attractions_of(candidates, real, objective):
    return Shard(0, candidates, real, objective, len(candidates)).attractions()


def exhaustive(candidates, real, objective):
    """The best of all choices, the first in lexicographic order among equals, and its terms."""
    sizes = np.array([len(pool) for pool in candidates])
    rows, classes = np.concatenate(candidates).astype(float), np.repeat(np.arange(len(sizes)), sizes)
    unary = objective.alpha * attractions_of(candidates, real, objective)
    logs = log_distances(rows, rows, classes, classes, objective.epsilon)
    places = offsets_of(sizes)[:-1] + np.array(list(itertools.product(*map(range, sizes))))  # (N, C)
    totals = unary[places].sum(axis=1)
    for i, j in itertools.combinations(range(len(sizes)), 2):
        totals -= objective.pair_weight(len(sizes)) * logs[places[:, i], places[:, j]]
    best = int(np.flatnonzero(totals <= totals.min() + 1e-12)[0])
    choice = places[best] - offsets_of(sizes)[:-1]
    return choice, evaluate(choice, candidates, real, objective)


def feature_tables(num_classes, seed=0, subgroups=4):
    """Return by class name the candidates (subgroup, index, feature), and the real features (8, WIDTH)."""
    rng = np.random.default_rng(seed)
    names = [f"class-{i:02d}" for i in range(num_classes)]
    centres = rng.random((num_classes, WIDTH)) + 0.2
    keys = list(itertools.product(range(subgroups), range(IPC)))
    candidates = {
        name: [(g, k, np.abs(c + 0.3 * rng.standard_normal(WIDTH))) for g, k in keys]
        for name, c in zip(names, centres, strict=True)
    }
    real = {
        name: np.abs(c + 0.2 * rng.standard_normal((8, WIDTH)))
        for name, c in zip(names, centres, strict=True)
    }
    return candidates, real


def write_feature_tables(folder, candidates, real, *, shuffled=False, files=1):
    """Write both tables as Parquet; return the paths of the first file of candidates and of the real ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(name, *row) for name, of_class in candidates.items() for row in of_class]
    if shuffled:
        rows = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    for number in range(files):
        names, subgroups, indices, vectors = zip(*rows[number::files], strict=True)
        columns = {"class": names, "subgroup": subgroups, "index": indices, "feature": _lists(vectors)}
        pq.write_table(pa.table(columns), folder / f"candidates-{number}.parquet", row_group_size=7)
    names = [name for name, of_class in real.items() for _ in of_class]
    vectors = _lists(row for of_class in real.values() for row in of_class)
    pq.write_table(pa.table({"class": names, "feature": vectors}), folder / "real.parquet")
    return str(folder / "candidates-0.parquet"), str(folder / "real.parquet")


def _lists(vectors):
    return pa.array([np.float32(vector).tolist() for vector in vectors], pa.list_(pa.float32()))
