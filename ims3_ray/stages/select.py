"""Select one subgroup a class (S³, Eq. 8–11). Reads features of candidates and real images, makes a selection.

Classes are split over actors; each reads the feature columns alone and holds the centroids of its own classes. A killed
actor is rebuilt from the same files and answers the same.
"""

from typing import Any

import numpy as np
import ray

from .. import tables
from ..artifacts import Directory, read_rows
from ..config import Select
from ..context import Context
from ..errors import InputError
from ..method.certificate import certify, make_groups, split_groups
from ..method.rng import permutation
from ..method.selection import Objective, real_centroid, subgroup_centroids
from ..method.selection_rounds import solve
from ..method.selection_shard import Shard, split_classes

VERSION = 1
CPUS_PER_SHARD = 0.5
ANSWER_WITHIN_S = 600  # a pool that can't be placed any more would block for ever


def run(context: Context, out: Directory, candidates: Directory, features: Directory) -> dict[str, Any]:
    """Write selection.json: the chosen subgroups, the objective and its terms, bound and gap, solver and settings."""
    config = context.config
    settings, classes = config.select, context.classes
    objective = Objective(settings.alpha, settings.beta, settings.epsilon, settings.normalization, settings.partners)
    ranges = split_classes(len(classes), context.machine.shards)
    shards = [ShardActor.remote(candidates, features, ids, classes, settings, objective, config.seed) for ids in ranges]
    call = _caller(shards)
    try:
        selection = solve(call, objective, restarts=settings.restarts, seed=config.seed)
        held = [h for start in split_groups(len(classes)) for h in _candidates(call, start)]
        if settings.partners == "selected":
            selection = certify(selection, make_groups(held, np.concatenate(call("attractions"))), objective)
        subgroups = [ids for per_shard in call("subgroups") for ids in per_shard]
        distances = [d for per_shard in call("distances") for d in per_shard]
    except ValueError as error:
        raise InputError(f"select: {_cause(error)}") from error
    chosen = {name: int(ids[g]) for name, ids, g in zip(classes, subgroups, selection.choice, strict=True)}
    document = {
        "selection": chosen,
        "objective": selection.objective,
        "terms": {"attraction": selection.terms.attraction, "separation": selection.terms.separation},
        "start_objective": selection.start,
        "lower_bound": selection.lower_bound,
        "gap": selection.gap,
        "gap_of_gain": selection.gap_of_gain,
        "certificate": selection.certificate,
        "solver": selection.solver,
        "rounds": selection.rounds,
        "settings": selection.settings,
        "per_class": {
            name: {"subgroups": ids.tolist(), "distances_to_real": d.tolist()}
            for name, ids, d in zip(classes, subgroups, distances, strict=True)
        },
    }
    out.write_json("selection.json", document)
    context.on_metrics("select", 0, {"objective": selection.objective, **document["terms"]})
    return {"rows": sum(len(ids) for ids in subgroups), "unit": "subgroups", "shards": len(ranges)}


@ray.remote(num_cpus=CPUS_PER_SHARD, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
class ShardActor:
    """A shard of the classes, its centroids read from Parquet."""

    def __init__(
        self,
        candidates: Directory,
        features: Directory,
        ids: range,
        classes: tuple[str, ...],
        settings: Select,
        objective: Objective,
        seed: int,
    ):
        drawn = read_rows(candidates, tables.CANDIDATES, ["label", "subgroup", "feature"])
        real = read_rows(features, tables.FEATURES, ["label", "feature"])
        self._ids, centroids, targets = [], [], []
        for label in ids:
            of_class = drawn["label"] == label
            found, centres = subgroup_centroids(
                drawn["feature"][of_class], drawn["subgroup"][of_class], label=f"candidates of class {classes[label]!r}"
            )
            rows = np.flatnonzero(real["label"] == label)
            rows = rows[permutation(len(rows), "real", seed, classes[label])[: settings.real_images]]
            self._ids.append(found)
            centroids.append(centres)
            targets.append(real_centroid(real["feature"][rows], label=f"real images of class {classes[label]!r}"))
        self._distances = [1 - c @ r for c, r in zip(centroids, targets, strict=True)]
        self._shard = Shard(ids[0], centroids, np.stack(targets), objective, len(classes))

    def ask(self, method: str, *arguments: Any) -> Any:
        """One of the shard's own answers, or `subgroups` and `distances`: per class ids (G,) and 1 − σ to r (G,)."""
        if method == "subgroups":
            return self._ids
        if method == "distances":
            return self._distances
        return getattr(self._shard, method)(*arguments)


def _caller(shards: list) -> Any:
    def call(method: str, *arguments: Any) -> list[Any]:
        shared = [ray.put(argument) for argument in arguments]  # once, not once a shard
        return ray.get([shard.ask.remote(method, *shared) for shard in shards], timeout=ANSWER_WITHIN_S)

    return call


def _candidates(call: Any, classes: range) -> list[np.ndarray]:
    return [centroids for held in call("candidates", classes.start, classes.stop) for centroids in held]


def _cause(error: BaseException) -> str:
    return str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
