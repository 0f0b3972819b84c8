"""Selection problems, shards in this process, and solvers to compare with."""

import itertools

import numpy as np

from ims3_ray.method.s3.distributed_descent import ask_here
from ims3_ray.method.s3.objective import evaluate, log_distances
from ims3_ray.method.s3.shard import Shard, offsets_of, split_classes


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
    """`ask` of shards in this process; `build` gives each."""
    shards = []
    for ids in split_classes(len(pools), num_shards):
        own = slice(ids.start, ids.stop)
        shards.append(
            build(ids.start, pools[own], real[own], objective, len(pools), *(a(own) for a in arguments))
        )
    return ask_here(shards)


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
