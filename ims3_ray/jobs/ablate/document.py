"""What an ablation found, as plain data: its rows' accuracies, coverage and cost, read off the artefacts of
its cells.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ims3_ray.data.distilled import is_selected
from ims3_ray.evaluation.protocols import protocol
from ims3_ray.pipeline.steps import Step
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate import baselines
from ims3_ray.stages.evaluate.classifiers import classifier_seeds
from ims3_ray.stages.evaluate.stage import first_of_pool
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import read_rows

from .plan import YARDSTICKS, Cell, Plan

Steps = Mapping[str, Step]  # by noun


def describe(ablation: Plan, contexts: Mapping[Cell, Context], steps: Mapping[Cell, Steps]) -> dict[str, Any]:
    """ablation.json of an ablation whose cells are complete: accuracies, coverage, time, by row."""
    pools = _coverage(ablation, contexts, steps)
    any_context = next(iter(contexts.values()))
    config, rules = any_context.config, protocol(any_context.config.evaluate.protocol)
    largest = max(ablation.ipcs)
    rows = []
    for row in ablation.rows.rows:
        source, of_set = (row.name, "distilled") if row.real is None else (ablation.rows.host, row.real)
        cells = {
            ipc: [_evaluation(steps[source, ipc, seed]) for seed in ablation.seeds] for ipc in ablation.ipcs
        }
        line = {
            "name": row.name,
            "overrides": dict(row.overrides),
            "is_real": row.real is not None,
            "note": row.note,
            "accuracy": {str(ipc): _accuracies(documents, of_set) for ipc, documents in cells.items()},
            "metrics": {
                str(ipc): _columns([d["coverage"][of_set] for d in documents])
                for ipc, documents in cells.items()
            },
        }
        if row.real is None:
            runs = [
                (contexts[source, largest, seed], steps[source, largest, seed]) for seed in ablation.seeds
            ]
            line |= {"seconds": _columns([_seconds(*run) for run in runs])}
            line["device_seconds"] = [sum(_seconds(*run).values()) * run[0].machine.actors for run in runs]
        else:
            line |= {"seconds": {}, "device_seconds": [0.0] * len(ablation.seeds)}
        rows.append(line | {"pool": pools.get(row.name)})
    return {
        "protocol": rules.label,
        "split": rules.split,
        "recipe": config.recipe,
        "baseline": ablation.rows.baseline,
        "ipcs": list(ablation.ipcs),
        "generator_seeds": list(ablation.seeds),
        "classifier_seeds": config.evaluate.seeds,
        "pool_images": ablation.pool_images,
        "device": any_context.machine.device,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": rows,
        "yardsticks": {name: _first_of(pools[name]) for name in YARDSTICKS} if pools else None,
    }


def _evaluation(steps: Steps) -> dict[str, Any]:
    return steps["evaluation"].directory.read_json("evaluation.json")


def _accuracies(documents: Sequence[Mapping], of_set: str) -> dict[str, list[list[float]]]:
    """last and best: a list of the classifier seeds' for each generator seed."""
    return {
        which: [document["sets"][of_set][which]["values"] for document in documents]
        for which in ("last", "best")
    }


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A mapping for each generator seed as a list over the seeds for each name."""
    return {name: [record[name] for record in records] for name in records[0]}


def _first_of(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    return {name: values[0] for name, values in columns.items()}


def _seconds(context: Context, steps: Mapping[str, Step]) -> dict[str, float]:
    """What a run alone would have spent, by stage: what others of the table made for it counts in full."""
    config = context.config
    tuned, started = config.finetune.epochs > 0, config.sample.start == "inversion"
    matched = tuned and bool(config.im.weight or config.im.grad_ratio)
    wanted = {"latents": tuned or started, "inversions": matched or started, "adapter": tuned}
    nouns = ("latents", "inversions", "adapter", "features", "candidates", "selection")
    return {steps[n].stage.name: steps[n].manifest["seconds"] for n in nouns if wanted.get(n, True)}


def _coverage(
    ablation: Plan, contexts: Mapping[Cell, Context], steps: Mapping[Cell, Steps]
) -> dict[str, dict[str, list[Any]]]:
    """Coverage of `pool_images` images a class over the seeds: of every row, a random real subset and the
    ceiling.

    A row that chooses single images chooses so many; of others the first candidates are taken, before any
    selection. Rows with fewer candidates are left out.
    """
    if not ablation.pool_images:
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in ablation.seeds:
        key = (ablation.rows.host, max(ablation.ipcs), seed)
        context, features = contexts[key], steps[key]["features"].directory
        real = read_rows(features, tables.FEATURES)
        sets = _real_sets(ablation, context, real, seed)
        for row in ablation.rows.rows:
            if row.real is None:
                chosen, largest = (
                    (row.name, ipc, seed) for ipc in (ablation.pool_images, max(ablation.ipcs))
                )
                vectors = _drawn(context, ablation.pool_images, steps.get(chosen), steps[largest])
                sets |= {row.name: vectors} if vectors else {}
        of_real, k = (real["feature"], real["label"]), context.config.evaluate.neighbours
        for name, values in baselines.measure_all(of_real, sets, k, context.classes).items():
            found.setdefault(name, []).append(values)
    return {name: _columns(records) for name, records in found.items()}


def _drawn(context: Context, count: int, selected: Steps | None, steps: Steps) -> baselines.Vectors | None:
    """Features and labels of the selected candidates, or of the first `count` a class where there are so
    many.
    """
    rows = read_rows(
        (selected or steps)["candidates"].directory,
        tables.CANDIDATES,
        ["label", "subgroup", "index", "feature"],
    )
    if selected:
        selection = selected["selection"].directory.read_json("selection.json")
        kept = np.flatnonzero(is_selected(selection, context.classes, rows))
    else:
        kept = first_of_pool(rows, count)
        if len(kept) < count * len(context.classes):
            return None
    return rows["feature"][kept], rows["label"][kept]


def _real_sets(
    ablation: Plan, context: Context, real: tables.Columns, seed: int
) -> dict[str, baselines.Vectors]:
    """`pool_images` real images a class: those of the rows that stand for real images, and the yardsticks."""
    count, train, first = ablation.pool_images, context.images["train"], classifier_seeds(seed, 1)
    vectors = real["feature"], real["label"]
    ids = {train.ids[row] for row in train.subset(count, "random", first[0])}
    chosen = {"random": np.flatnonzero([image in ids for image in real["image_id"]])}
    kinds = {row.real for row in ablation.rows.rows if row.real}
    coresets = baselines.choose_coresets(vectors, sorted(kinds - {"random"}), count, first, context.classes)
    chosen |= {name: rows for (name, _), rows in coresets.items()}
    of_rows = {row.name: chosen[row.real] for row in ablation.rows.rows if row.real}
    of_rows["random"] = chosen["random"]
    of_rows["ceiling"] = baselines.ceiling(
        vectors, count, context.config.evaluate.neighbours, context.classes
    )
    return {name: (vectors[0][rows], vectors[1][rows]) for name, rows in of_rows.items()}
