"""Score the distilled set. Reads it and the real images, makes an evaluation.

Classifiers are trained on the distilled set, on baselines of as many real images and, where asked, on the
full set, over the same seeds; coverage is measured in feature space beside the baselines', a random real
subset's and the ceiling's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ims3_ray.data.distilled import DistilledSet, is_selected
from ims3_ray.evaluation.figures import CURVE, headline
from ims3_ray.evaluation.protocols import NO_PROTOCOL, protocols
from ims3_ray.stages.context import Context
from ims3_ray.stages.contract import Stage
from ims3_ray.stages.costs import BACKWARD, Cost, Forward, classifier_operations
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, read_rows

from .baselines import Vectors
from .classifiers import classifier_seeds, images_seen, pixels_of
from .compare import FULL_SEEDS, Real, choose, cover, score, training_sets


def run(
    context: Context,
    out: Directory,
    distilled: Directory,
    selection: Directory,
    candidates: Directory,
    features: Directory,
    refined: Directory | None = None,
) -> dict[str, Any]:
    """Write evaluation.json: by network and set last and best over the seeds, with intervals; coverage."""
    config, train = context.config, context.images["train"]
    networks = protocols(config.evaluate.protocol, config.evaluate.networks)
    seeds = classifier_seeds(config.seed, config.evaluate.seeds)
    table = read_rows(features, tables.FEATURES)
    real = Real(train, train.ids, table["image_id"].tolist(), (table["feature"], table["label"]))
    asked, draws = config.evaluate.baselines, config.evaluate.draws
    sizes = [[config.ipc] * len(train.classes)]
    choices = choose(real, dict.fromkeys(("random", *asked)), sizes, seeds, draws)
    drawn = _drawn(context, selection, candidates, refined)
    coverage = cover(drawn, choices, real, seeds[0], config.evaluate.neighbours, config.ipc)
    own = {"distilled": pixels_of(DistilledSet(distilled), networks[0].image_size)}
    asked_for = {key: choice for key, choice in choices.items() if key[0] in asked}
    sets = training_sets(own, asked_for, train, seeds, networks[0].image_size, config.evaluate.full)
    curve = MeanCurve(
        networks[0].label,
        "distilled",
        seeds,
        lambda step, mean: context.on_metrics("evaluate", step, {CURVE: mean}),
    )
    document = score(
        sets, own, context.images[networks[0].split], networks, context.classes, context.machine, curve
    )
    document["coverage"] = coverage
    out.write_json("evaluation.json", {**document, "ipc": config.ipc})
    return {"rows": len(sets) * len(networks)}


def _drawn(
    context: Context, selection: Directory, candidates: Directory, refined: Directory | None
) -> dict[str, Vectors]:
    """What the set was made of, before refinement and after, and, where asked, the first of the pool."""
    rows = read_rows(candidates, tables.CANDIDATES, ["label", "subgroup", "index", "feature"])
    vectors, count = (rows["feature"], rows["label"]), context.config.evaluate.pool_images
    is_chosen = is_selected(selection.read_json("selection.json"), context.classes, rows)
    drawn = {"distilled": is_chosen} | ({"pool": first_of_pool(rows, count)} if count else {})
    sets = {name: (vectors[0][of_set], vectors[1][of_set]) for name, of_set in drawn.items()}
    if refined:
        moved = read_rows(refined, tables.REFINED, ["label", "feature", "start_feature"])
        sets["distilled"] = moved["feature"], moved["label"]
        sets["before"] = moved["start_feature"], moved["label"]
    return sets


def first_of_pool(drawn: tables.Columns, count: int) -> np.ndarray:
    """Rows of the first `count` candidates a class, in the order of subgroup and index."""
    order = np.lexsort((drawn["index"], drawn["subgroup"], drawn["label"]))
    labels = drawn["label"][order]
    place = np.arange(len(order)) - np.searchsorted(labels, labels)
    return order[place < count]


class MeanCurve:
    """A set's accuracy while its classifiers train: the mean over seeds, once all are at a step."""

    def __init__(self, label: str, name: str, seeds: Sequence[int], tell: Callable[[int, float], None]):
        """Looks of the set `name` by the protocol `label` count; `tell(step, mean)` has ascending steps."""
        self._of, self._seeds, self._tell = (label, name), set(seeds), tell
        self._at: dict[int, dict[int, float]] = {}
        self._told = 0

    def __call__(self, label: str, name: str, seed: int, step: int, accuracy: float) -> None:
        if (label, name) != self._of:
            return
        self._at.setdefault(step, {})[seed] = accuracy
        for known in sorted(step for step, by_seed in self._at.items() if set(by_seed) == self._seeds):
            if known > self._told:  # a training that was begun anew says again what it said
                self._told = known
                self._tell(known, sum(self._at[known].values()) / len(self._seeds))


def _depends(context: Context) -> object:
    config = context.config
    networks = protocols(config.evaluate.protocol, config.evaluate.networks)
    rules = [protocol.model_dump(mode="json") for protocol in networks]
    settings = config.evaluate.model_dump(mode="json")
    return [settings, rules, config.seed, config.ipc, context.inputs.get("scored"), context.machine.device]


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    """Rows are the classifiers to train, on sets of different sizes; looks are not counted."""
    config, num_classes = context.config, len(context.classes)
    seeds = config.evaluate.seeds
    names = {"distilled", *config.evaluate.baselines}
    more_draws = max(0, (config.evaluate.draws or 0) - seeds) if "random" in names else 0
    sizes = [config.ipc * num_classes] * (len(names) * seeds + more_draws)
    if config.evaluate.full:
        sizes += [len(context.images["train"])] * min(seeds, FULL_SEEDS)
    networks, operations = protocols(config.evaluate.protocol, config.evaluate.networks), 0.0
    for rules in networks:
        seen = sum(images_seen(rules, images, num_classes) for images in sizes)
        operations += seen * BACKWARD * classifier_operations(rules, num_classes)
    count = len(sizes) * len(networks)
    return Cost(count, operations / count, disk=1e5)


STAGE = Stage(
    name="evaluate",
    noun="evaluation",
    version=5,
    reads=("distilled", "selection", "candidates", "features", "refined"),
    unit="classifiers",
    is_part=lambda context: context.config.evaluate.protocol != NO_PROTOCOL,
    run=run,
    depends=_depends,
    cost=_cost,
    figures=lambda out: headline(out.read_json("evaluation.json")),
)
