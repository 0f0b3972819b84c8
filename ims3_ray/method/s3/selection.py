"""Select one subgroup per class from features in memory (`ims3_ray.select`), and choose the solver."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float32

from .bound import TaskRunner, certify
from .branch_and_bound import MAX_ROWS, branch_and_bound
from .distributed_descent import Shards, fetch_pools, solve
from .objective import Objective, Selection, real_centroid, subgroup_centroids
from .shard import Shard

MAX_PROVED = 200  # subgroups in total up to which solver "auto" is exact
Answer = TypeVar("Answer")


Features = Any  # an array or a torch tensor (rows, D)


def select(  # noqa: PLR0913 the fields of select.*, by name
    candidates: Sequence[Sequence[Features]],
    real: Sequence[Features],
    *,
    alpha: float = 0.4,
    beta: float = 0.9,
    epsilon: float = 0.0,
    normalization: Literal["per_class", "none"] = "per_class",
    solver: Literal["auto", "rounds", "exact"] = "auto",
    restarts: int = 8,
    lower_bound: Literal["auto", "none", "series", "trws"] = "auto",
    seed: int = 0,
) -> Selection:
    """Select one subgroup per class by S³: close to the real images of its class, far from the other choices.

        L(g) = α Σ_i log(d(c_{i,g_i}, r_i) + ε) - w Σ_{i<j} log(d(c_{i,g_i}, c_{j,g_j}) + ε)      (Eq. 8–11)

    d is the cosine distance; c and r are the unit-length means of unit-length features; w is 2β/(C-1), or β
    with normalization "none" (published code).

    candidates: `candidates[i][g]` holds the features (K, D) of subgroup g of class i. An array or tensor
        (G, K, D) per class will do; classes and subgroups may differ in size.
    real: `real[i]` holds the features (M, D) of the real images of class i, or its centroid as (1, D).
    solver: "exact" is branch and bound, for at most 2,000 subgroups in total; "auto" is exact up to 200.
    lower_bound: method of the lower bound; see docs/select.md.

    Returns a Selection: `choice` (C,) has the chosen subgroup of each class, `objective` is L, and
    `lower_bound` and `gap` say how far L can be from the optimum. Raises ValueError, naming the class, for
    features that cannot be used, and if ε is 0 and centroids coincide.

        >>> import numpy as np
        >>> import ims3_ray
        >>> rng = np.random.default_rng(0)
        >>> candidates = rng.random((10, 5, 20, 512))  # 10 classes, 5 subgroups of 20 images
        >>> selection = ims3_ray.select(candidates, rng.random((10, 300, 512)))
        >>> selection.choice.shape, selection.gap
        ((10,), 0.0)
    """
    objective = Objective(alpha, beta, epsilon, normalization)
    pools, centroids = _centroids(candidates, real)
    num_subgroups = sum(map(len, pools))
    if solver == "exact" and num_subgroups > MAX_ROWS:
        raise ValueError(f"solver: exact takes at most {MAX_ROWS} subgroups, not {num_subgroups}; use rounds")
    shard = Shard(0, pools, centroids, objective, len(pools))
    exact = is_exact(solver, lower_bound, num_subgroups)
    selection = minimise(shard, objective, exact=exact, restarts=restarts, seed=seed, run=run_here)
    return certify(selection, shard, objective, method=lower_bound, run=run_here)


def _centroids(
    candidates: Sequence[Sequence[Features]], real: Sequence[Features]
) -> tuple[list[Float32[np.ndarray, "_ _"]], Float32[np.ndarray, "C D"]]:
    """Return per class the centroids of its subgroups, and the real centroids."""
    if not len(real) or len(candidates) != len(real):
        raise ValueError(
            f"real: {len(real)} classes, candidates: {len(candidates)}; give one entry per class"
        )
    pools: list[Float32[np.ndarray, "_ _"]] = []
    centroids: list[Float32[np.ndarray, " D"]] = []
    width = _array(real[0]).shape[-1:]
    for i, (subgroups, rows) in enumerate(zip(candidates, real, strict=True)):
        tables = [_array(features) for features in subgroups]
        of_real = _array(rows)
        for table in (*tables, of_real):
            if table.ndim != 2 or not len(table) or table.shape[1:] != width:
                raise ValueError(f"class {i}: features of shape {table.shape}; give (rows, D), D {width}")
        if not tables:
            raise ValueError(f"class {i}: no subgroup; give at least one per class")
        ids = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        pools.append(subgroup_centroids(np.concatenate(tables), ids, label=f"candidates of class {i}")[1])
        centroids.append(real_centroid(of_real, label=f"real images of class {i}"))
    return pools, np.stack(centroids)


def is_exact(solver: str, lower_bound: str, num_subgroups: int) -> bool:
    """Tell whether branch and bound selects: on request, or by default if it takes seconds at most."""
    return solver == "exact" or (solver == lower_bound == "auto" and num_subgroups <= MAX_PROVED)


def minimise(
    shards: Shards, objective: Objective, *, exact: bool, restarts: int, seed: int, run: TaskRunner
) -> Selection:
    """Return the selection by branch and bound if `exact`, otherwise by `solve`."""
    if not exact:
        return solve(shards, objective, restarts=restarts, seed=seed)
    sizes = shards.sizes()
    problem = fetch_pools(shards, sizes), shards.real(), objective
    return run(partial(branch_and_bound, restarts=restarts, seed=seed), [problem])[0]


def run_here(function: Callable[..., Answer], arguments: Sequence[tuple[object, ...]]) -> list[Answer]:
    """Call `function` on each tuple of `arguments` in this process."""
    return [function(*values) for values in arguments]


def _array(rows: Features) -> np.ndarray:
    if hasattr(rows, "detach"):  # torch itself is not imported
        return rows.detach().cpu().double().numpy()
    return np.asarray(rows)
