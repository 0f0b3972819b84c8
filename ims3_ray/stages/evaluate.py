"""Score the distilled set. Reads it and the real images, makes an evaluation.

Classifiers are trained on the distilled set, on random real images of the same number and, where asked, on the full set,
over the same seeds, each a Ray task; coverage is measured in feature space beside that of a random real subset.
"""

import dataclasses
from typing import Any

import numpy as np
import ray

from .. import tables
from ..artifacts import Directory, read_rows
from ..context import Context
from ..data.distilled import DistilledSet, is_selected
from ..data.images import ImageSet
from ..data.reading import BatchReader, payloads
from ..evaluation.protocols import Protocol, protocol
from ..evaluation.train import summary, train_and_score
from ..method.coverage import class_coverage
from ..models.device import prepare_device
from ..progress import bar

VERSION = 3
READ_ROWS = 512  # images a reading task
COVERAGE = ("coverage", "low_density_coverage", "density", "precision", "copy_rate", "vendi")


def run(
    context: Context, out: Directory, distilled: Directory, selection: Directory, candidates: Directory, features: Directory
) -> dict[str, Any]:
    """Write evaluation.json: protocol, per set last and best over the seeds with 95 % intervals, coverage."""
    config = context.config
    rules = protocol(config.evaluate.protocol)
    train, scored = context.images["train"], context.images[rules.split]
    seeds = [config.seed + i for i in range(config.evaluate.seeds)]
    tests = _read(scored, np.arange(len(scored)), rules.image_size)
    made = DistilledSet(distilled)
    sets = {("distilled", seed): _pixels_of(made) for seed in seeds}
    for seed in seeds:
        sets["random", seed] = _read(train, train.subset(config.ipc, "random", seed), rules.image_size)
    if config.evaluate.full:
        full = _read(train, np.arange(len(train)), rules.image_size)
        sets |= {("full", seed): full for seed in seeds}
    scores = _train(context, rules, sets, tests)
    document = {
        "protocol": rules.label,
        "split": rules.split,
        "ipc": config.ipc,
        "sets": {name: _summarise(of_set) for name, of_set in scores.items()},
        "coverage": _coverage(context, selection, candidates, features),
    }
    out.write_json("evaluation.json", document)
    context.on_metrics("evaluate", 0, headline(document))
    return {"rows": len(sets), "unit": "classifiers"}


def headline(document: dict[str, Any]) -> dict[str, float]:
    """The figures that a run is sorted and filtered by."""
    figures = {"accuracy": document["sets"]["distilled"]["last"]["mean"]}
    for name, of_set in document["sets"].items():
        figures[f"accuracy/{name}/last"] = of_set["last"]["mean"]
        figures[f"accuracy/{name}/last_interval"] = of_set["last"]["interval"]
        figures[f"accuracy/{name}/best"] = of_set["best"]["mean"]
    for name, values in document["coverage"].items():
        figures |= {f"{metric}/{name}": value for metric, value in values.items() if value is not None}
    return figures


def _train(context: Context, rules: Protocol, sets: dict, tests: tuple[Any, Any]) -> dict[str, list[dict[str, Any]]]:
    """Every set's scores in the order of the seeds. The longest trainings are begun first."""
    train = ray.remote(**context.machine.actor_resources)(score)
    shared = {id(pair): ray.put(pair) for pair in {id(p): p for p in sets.values()}.values()}
    test = ray.put(tests)
    order = sorted(sets, key=lambda key: -len(sets[key][1]))
    pending = {
        train.remote(shared[id(sets[key])], test, rules, len(context.classes), key[1], context.machine.device): key
        for key in order
    }
    done: dict[tuple[str, int], dict[str, Any]] = {}
    with bar("evaluate", len(pending), "classifiers") as shown:
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            done[pending.pop(ready)] = ray.get(ready)
            shown.update(1)
    names = dict.fromkeys(name for name, _ in sets)
    return {name: [done[key] for key in sets if key[0] == name] for name in names}


def score(data: tuple, tests: tuple, rules: Protocol, num_classes: int, seed: int, device: str) -> dict[str, Any]:
    """One classifier trained on `data` (pixels, labels) and scored on `tests`, as plain data."""
    import torch

    images, labels, test_images, test_labels = (torch.from_numpy(np.array(a)) for a in (*data, *tests))
    result = train_and_score(
        images, labels, test_images, test_labels,
        protocol=rules, num_classes=num_classes, seed=seed, device=prepare_device(device),
    )  # fmt: skip
    return dataclasses.asdict(result) | {"images": len(labels)}


def _summarise(scores: list[dict[str, Any]]) -> dict[str, Any]:
    of_set: dict[str, Any] = {"images": scores[0]["images"], "curves": [s["history"] for s in scores]}
    for which in ("last", "best"):
        values = [s[which] for s in scores]
        of_set[which] = dataclasses.asdict(summary(values)) | {"values": values}
    return of_set


def _read(images: ImageSet, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3, size, size) uint8 and labels (N,) of rows of a set, read by Ray tasks."""
    read = ray.remote(num_cpus=0.5)(lambda payload: BatchReader(images.directory, size)(payload)[:2])
    parts = ray.get([read.remote(payload) for payload in payloads(images, rows.tolist(), READ_ROWS)])
    return np.concatenate([p for p, _ in parts]), np.concatenate([known["label"] for _, known in parts])


def _pixels_of(made: DistilledSet) -> tuple[np.ndarray, np.ndarray]:
    pixels = [np.asarray(made[row][0]).transpose(2, 0, 1) for row in range(len(made))]
    return np.stack(pixels), np.array(made.targets, dtype=np.int64)


def _coverage(context: Context, selection: Directory, candidates: Directory, features: Directory) -> dict[str, Any]:
    """Class coverage of the distilled images, beside that of a random real subset of the same number, the yardstick."""
    config = context.config
    real = read_rows(features, tables.FEATURES)
    drawn = read_rows(candidates, tables.CANDIDATES, ["label", "subgroup", "index", "feature"])
    picked = is_selected(selection.read_json("selection.json"), context.classes, drawn)
    subset = context.images["train"].subset(config.ipc, "random", config.seed)
    ids = {context.images["train"].ids[row] for row in subset}
    yardstick = np.array([image_id in ids for image_id in real["image_id"]])
    sets = {
        "distilled": (drawn["feature"][picked], drawn["label"][picked]),
        "random": (real["feature"][yardstick], real["label"][yardstick]),
    }
    measured = {}
    for name, (vectors, labels) in sets.items():
        found = class_coverage(real["feature"], real["label"], vectors, labels, k=config.evaluate.neighbours)
        measured[name] = {metric: found.mean[metric] for metric in COVERAGE}
    return measured
