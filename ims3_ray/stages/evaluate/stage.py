"""Score the distilled set. Reads it and the real images, makes an evaluation.

Classifiers are trained on the distilled set, on baselines of as many real images and, where asked, on the
full set, over the same seeds; coverage is measured in feature space beside the baselines', a random real
subset's and the ceiling's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ims3_ray.data.distilled import DistilledSet, is_selected
from ims3_ray.evaluation.protocols import NO_PROTOCOL, Protocol, protocols
from ims3_ray.models.classifiers import build
from ims3_ray.stages.context import Context
from ims3_ray.stages.contract import Stage
from ims3_ray.stages.costs import BACKWARD, Cost, Forward, count_operations
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, read_rows

from .baselines import COVERAGE, SEEDED, Vectors, ceiling, choose_all, measure_all
from .classifiers import Pixels, classifier_seeds, pixels_of, read_pixels, summarise, train_all

CURVE = "distilled_accuracy"  # the metric, by step, of the distilled set while its classifiers train


def run(
    context: Context,
    out: Directory,
    distilled: Directory,
    selection: Directory,
    candidates: Directory,
    features: Directory,
) -> dict[str, Any]:
    """Write evaluation.json: per network and set last and best over the seeds with 95 % intervals; coverage."""
    config = context.config
    networks = protocols(config.evaluate.protocol, config.evaluate.networks)
    seeds = classifier_seeds(config.seed, config.evaluate.seeds)
    table = read_rows(features, tables.FEATURES)
    real = table["feature"], table["label"]
    chosen = _baselines(context, table["image_id"], real, seeds)
    coverage = _coverage(context, real, chosen, selection, candidates, seeds[0])
    rules = networks[0]
    scored = context.images[rules.split]
    tests = read_pixels(scored, np.arange(len(scored)), rules.image_size)
    sets = _sets(context, rules, pixels_of(DistilledSet(distilled)), chosen, seeds)
    curve = MeanCurve(
        rules.label,
        "distilled",
        seeds,
        lambda step, mean: context.on_metrics("evaluate", step, {CURVE: mean}),
    )
    scores = train_all(sets, tests, networks, context.classes, context.machine, curve)
    by_network = {label: summarise(of_network) for label, of_network in scores.items()}
    document = {
        "protocol": rules.label,
        "split": rules.split,
        "ipc": config.ipc,
        "sets": by_network[rules.label],
        "coverage": coverage,
    }
    if len(by_network) > 1:
        document["networks"] = by_network
    out.write_json("evaluation.json", document)
    context.on_metrics("evaluate", 0, headline(document))
    return {"rows": len(sets) * len(networks)}


class MeanCurve:
    """A set's accuracy while its classifiers train, as `train_all` tells it: the mean over seeds, once all
    are at a step.
    """

    def __init__(self, label: str, name: str, seeds: Sequence[int], tell: Callable[[int, float], None]):
        """Looks of the set `name` under the protocol `label` count; `tell(step, mean)` is called with
        ascending steps.
        """
        self._of, self._seeds, self._tell = (label, name), set(seeds), tell
        self._at: dict[int, dict[int, float]] = {}
        self._told = 0

    def __call__(self, label: str, name: str, seed: int, step: int, accuracy: float) -> None:
        if (label, name) != self._of:
            return
        self._at.setdefault(step, {})[seed] = accuracy
        for known in sorted(step for step, found in self._at.items() if set(found) == self._seeds):
            if known > self._told:  # a training that was begun anew says again what it said
                self._told = known
                self._tell(known, sum(self._at[known].values()) / len(self._seeds))


def headline(document: dict[str, Any]) -> dict[str, float]:
    """The figures that a run is sorted and filtered by. Networks but the first have theirs under their label."""
    figures = {"accuracy": document["sets"]["distilled"]["last"]["mean"]}
    for name, of_set in document["sets"].items():
        figures[f"accuracy/{name}/last"] = of_set["last"]["mean"]
        figures[f"accuracy/{name}/last_interval"] = of_set["last"]["interval"]
        figures[f"accuracy/{name}/best"] = of_set["best"]["mean"]
        if of_set.get("label_robust_score") is not None:
            figures[f"label_robust_score/{name}"] = of_set["label_robust_score"]
    for label, sets in document.get("networks", {}).items():
        figures |= {f"accuracy/{name}/last/{label}": of_set["last"]["mean"] for name, of_set in sets.items()}
    for name, values in document["coverage"].items():
        figures |= {
            f"{metric}/{name}": value for metric, value in values.items() if isinstance(value, int | float)
        }
    return figures


def _baselines(
    context: Context, image_ids: np.ndarray, real: Vectors, seeds: list[int]
) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """By baseline and seed: rows of the training images, and of the features. Random is there, asked for or
    not.
    """
    config, train = context.config, context.images["train"]
    named = [name for name in config.evaluate.baselines if name != "random"]
    row_of = {image_id: row for row, image_id in reversed(list(enumerate(train.ids)))}
    rows_of_features = np.array([row_of[image_id] for image_id in image_ids])
    chosen = {}
    for seed in seeds:
        rows = train.subset(config.ipc, "random", seed)
        ids = {train.ids[row] for row in rows}
        chosen["random", seed] = rows, np.flatnonzero([image_id in ids for image_id in image_ids])
    for key, rows in choose_all(real, named, config.ipc, seeds, context.classes).items():
        chosen[key] = rows_of_features[rows], rows
    return chosen


def _sets(
    context: Context, rules: Protocol, made: Pixels, chosen: dict, seeds: list[int]
) -> dict[tuple[str, int], Pixels]:
    """What each seed trains on: the distilled set, the baselines asked for, the full set."""
    train = context.images["train"]
    sets = {("distilled", seed): made for seed in seeds}
    for name in context.config.evaluate.baselines:
        for seed in seeds:
            same = name not in SEEDED and seed != seeds[0]
            pixels = (
                sets[name, seeds[0]] if same else read_pixels(train, chosen[name, seed][0], rules.image_size)
            )
            sets[name, seed] = pixels
    if context.config.evaluate.full:
        full = read_pixels(train, np.arange(len(train)), rules.image_size)
        sets |= {("full", seed): full for seed in seeds}
    return sets


def _coverage(
    context: Context, real: Vectors, chosen: dict, selection: Directory, candidates: Directory, seed: int
) -> dict[str, Any]:
    """Coverage of the distilled images, of the baselines as `seed` chose them, random ones the yardstick, of
    the ceiling.

    Where asked, of the pool's first candidates a class too, in the order of subgroup and index.
    """
    config = context.config
    drawn = read_rows(candidates, tables.CANDIDATES, ["label", "subgroup", "index", "feature"])
    picked = is_selected(selection.read_json("selection.json"), context.classes, drawn)
    rows = {name: places for (name, of_seed), (_, places) in chosen.items() if of_seed == seed}
    rows["ceiling"] = ceiling(real, config.ipc, config.evaluate.neighbours, context.classes)
    sets = {"distilled": (drawn["feature"][picked], drawn["label"][picked])}
    sets |= {name: (real[0][places], real[1][places]) for name, places in rows.items()}
    if config.evaluate.pool_images:
        first = first_of_pool(drawn, config.evaluate.pool_images)
        sets["pool"] = drawn["feature"][first], drawn["label"][first]
    return measure_all(real, sets, config.evaluate.neighbours, context.classes, COVERAGE)


def first_of_pool(drawn: tables.Columns, count: int) -> np.ndarray:
    """Rows of the first `count` candidates a class, in the order of subgroup and index."""
    order = np.lexsort((drawn["index"], drawn["subgroup"], drawn["label"]))
    labels = drawn["label"][order]
    place = np.arange(len(order)) - np.searchsorted(labels, labels)
    return order[place < count]


def _depends(context: Context) -> object:
    config = context.config
    networks = protocols(config.evaluate.protocol, config.evaluate.networks)
    rules = [protocol.model_dump(mode="json") for protocol in networks]
    settings = config.evaluate.model_dump(mode="json")
    return [settings, rules, config.seed, config.ipc, context.inputs["scored"], context.machine.device]


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    """Rows are the classifiers to train, on sets of different sizes; looks at the scored images don't count."""
    config, num_classes = context.config, len(context.classes)
    sizes = [config.ipc * num_classes] * len({"distilled", *config.evaluate.baselines})
    if config.evaluate.full:
        sizes.append(len(context.images["train"]))
    networks, operations = protocols(config.evaluate.protocol, config.evaluate.networks), 0.0
    for rules in networks:
        network = build(rules.network, num_classes, rules.image_size, None, width=rules.width).to("meta")
        image = torch.zeros(1, 3, rules.image_size, rules.image_size, device="meta")
        step_operations = BACKWARD * count_operations(network, image)
        for images in sizes:
            budget = rules.budget(max(1, round(images / num_classes)), num_classes)
            steps = budget.steps or budget.epochs * -(-images // budget.batch_size)
            operations += steps * min(budget.batch_size, images) * step_operations
    count = len(sizes) * len(networks)
    return Cost(config.evaluate.seeds * count, operations / count, disk=1e5)


STAGE = Stage(
    name="evaluate",
    noun="evaluation",
    version=3,
    reads=("distilled", "selection", "candidates", "features"),
    unit="classifiers",
    is_part=lambda context: context.config.evaluate.protocol != NO_PROTOCOL,
    run=run,
    depends=_depends,
    cost=_cost,
)
