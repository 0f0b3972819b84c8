"""What an ablation gives, as plain data: accuracies, coverage and cost of its rows, read off artefacts."""

import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ims3_ray.config.load import subject
from ims3_ray.evaluation.protocols import get_protocols
from ims3_ray.evaluation.results import Evaluation
from ims3_ray.evaluation.teacher import teacher_protocol
from ims3_ray.method.coverage import Values
from ims3_ray.pipeline.steps import Step
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.baselines import measure_coverage
from ims3_ray.stages.evaluate.classifiers import classifier_seeds, label_agreement
from ims3_ray.stages.evaluate.compare import Real, choose_baselines, real_features
from ims3_ray.stages.evaluate.stage import first_of_pool
from ims3_ray.stages.selected import KEYS, selected_rows
from ims3_ray.storage.rows import Index, read_index
from ims3_ray.storage.schemas import CANDIDATES, FEATURES

from . import plan
from .comparison import Ablation, Accuracy, Column
from .comparison import Row as RowFigures

Steps = Mapping[str, Step]  # by noun
Value = TypeVar("Value")


def describe(
    ablation: plan.Plan, contexts: Mapping[plan.Cell, Context], steps: Mapping[plan.Cell, Steps]
) -> Ablation:
    """ablation.json of an ablation whose cells are complete."""
    pools = _pools(ablation, contexts, steps) if ablation.pool_images else {}
    context = next(iter(contexts.values()))
    config = context.config
    rules = get_protocols(config.evaluate.protocol, config.evaluate.networks)[0]
    return {
        "protocol": rules.label,
        "split": rules.split,
        "title": subject(config),
        "recipe": config.recipe,
        "baseline": ablation.rows.baseline,
        "ipcs": list(ablation.ipcs),
        "generator_seeds": list(ablation.seeds),
        "classifier_seeds": config.evaluate.seeds,
        "pool_images": ablation.pool_images,
        "device": context.machine.device,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": [
            _row(ablation, row, contexts, steps, rules.label, pools.get(row.name))
            for row in ablation.rows.rows
        ],
        "yardsticks": {n: {k: v[0] for k, v in pools[n].items()} for n in plan.YARDSTICKS} if pools else None,
    }


def _row(
    ablation: plan.Plan,
    row: plan.Row,
    contexts: Mapping[plan.Cell, Context],
    steps: Mapping[plan.Cell, Steps],
    label: str,
    pool: dict[str, Column] | None,
) -> RowFigures:
    source, of_set = (row.name, "distilled") if row.real is None else (ablation.rows.host, row.real)
    documents: dict[str, list[Evaluation]] = {
        str(ipc): [
            steps[source, ipc, seed]["evaluation"].directory.read_json("evaluation.json")
            for seed in ablation.seeds
        ]
        for ipc in ablation.ipcs
    }
    seconds: list[dict[str, float]] = []
    device_seconds = [0.0] * len(ablation.seeds)
    if row.real is None:
        cells = [(row.name, max(ablation.ipcs), seed) for seed in ablation.seeds]
        seconds = [_seconds(contexts[cell], steps[cell]) for cell in cells]
        actors = [contexts[cell].machine.actors for cell in cells]
        device_seconds = [sum(s.values()) * n for s, n in zip(seconds, actors, strict=True)]
    accuracies = _accuracies(of_set, documents)
    return {
        "name": row.name,
        "overrides": dict(row.overrides),
        "is_real": row.real is not None,
        "note": row.note,
        "accuracy": accuracies.pop(label),
        "networks": accuracies,
        "metrics": {ipc: _columns([d["coverage"][of_set] for d in of]) for ipc, of in documents.items()},
        "seconds": _columns(seconds),
        "device_seconds": device_seconds,
        "pool": pool,
    }


def _accuracies(of_set: str, by_ipc: Mapping[str, Sequence[Evaluation]]) -> dict[str, Accuracy]:
    """By the protocol's label, of every network."""
    by_network: dict[str, Accuracy] = {}
    for ipc, documents in by_ipc.items():
        scored = [d.get("networks") or {d["protocol"]: d["sets"]} for d in documents]
        for label in scored[0]:
            which = {w: [sets[label][of_set][w]["values"] for sets in scored] for w in ("last", "best")}
            by_network.setdefault(label, {})[ipc] = which
    return by_network


def _columns(records: Sequence[Mapping[str, Value]]) -> dict[str, Sequence[Value]]:
    """A mapping for each generator seed as a list over the seeds for each name."""
    return {name: [record[name] for record in records] for name in (records[0] if records else ())}


def _seconds(context: Context, steps: Steps) -> dict[str, float]:
    """What a run alone would have spent, by stage: what others of the table made for it counts in full."""
    of_run, is_matched = dict(steps), bool(context.config.im.weight or context.config.im.grad_ratio)
    if not (is_matched or context.starts_from_inversions):
        of_run.pop("inversions", None)  # made, and not looked at
    nouns = ("latents", "inversions", "adapter", "features", "candidates", "selection", "probes", "refined")
    needed = (of_run[noun] for noun in nouns if noun in of_run)
    return {step.stage.name: step.manifest["seconds"] for step in needed if step.manifest}


def _pools(
    ablation: plan.Plan, contexts: Mapping[plan.Cell, Context], steps: Mapping[plan.Cell, Steps]
) -> dict[str, dict[str, Column]]:
    """Coverage of `pool_images` images a class over the seeds: of every row and of the yardsticks.

    A row that chooses single images chooses so many; of others the first candidates are taken, before any
    selection. Rows with fewer candidates are left out.
    """
    count, rows = ablation.pool_images or 0, ablation.rows
    records: dict[str, list[Values]] = {}
    for seed in ablation.seeds:
        key = (rows.host, max(ablation.ipcs), seed)
        context, train = contexts[key], contexts[key].images["train"]
        index = read_index(steps[key]["features"].directory, FEATURES, ["image_id", "label"])
        real = Real(train, train.ids, index.keys["image_id"].tolist(), index)
        drawn: dict[str, Index] = {}
        for row in rows.rows:
            if row.real is None:
                cells = ((row.name, ipc, seed) for ipc in (count, max(ablation.ipcs)))
                drawn |= _drawn(row.name, context, count, *(steps.get(cell) for cell in cells))
        names = dict.fromkeys(["random", *sorted({row.real for row in rows.rows if row.real})])
        choices = choose_baselines(real, names, [[count] * len(train.classes)], classifier_seeds(seed, 1))
        neighbours = context.config.evaluate.neighbours
        of_real = real_features(choices, real, classifier_seeds(seed, 1)[0], neighbours, count)
        sets: dict[str, Index] = {**drawn, **{name: of_real[name] for name in plan.YARDSTICKS}}
        sets |= {row.name: of_real[row.real] for row in rows.rows if row.real}
        measured = measure_coverage(real.features, sets, neighbours, train.classes)
        if ablation.agreement:
            for name, share in _agreement(context, drawn).items():
                measured[name]["agreement"] = share
        for name, values in measured.items():
            records.setdefault(name, []).append(values)
    return {name: _columns(of_seeds) for name, of_seeds in records.items()}


def _agreement(context: Context, drawn: Mapping[str, Index]) -> dict[str, float]:
    """Of every generated row, by a classifier of the protocol's first network and the generator's seed.

    By one that is trained as a soft protocol's teacher is, where labels are soft.
    """
    settings = context.config.evaluate
    rules, train = get_protocols(settings.protocol, settings.networks)[0], context.images["train"]
    if rules.is_soft:
        rules = teacher_protocol(settings.protocol)
    seed = classifier_seeds(context.config.seed, 1)[0]
    return label_agreement(drawn, train, rules, seed, context.machine)


def _drawn(
    name: str, context: Context, count: int, selected: Steps | None, steps: Steps | None
) -> dict[str, Index]:
    """The selected candidates, or the first `count` a class where there are so many."""
    source = selected or steps
    assert source is not None
    pool = read_index(source["candidates"].directory, CANDIDATES, KEYS)
    if selected:
        return {name: selected_rows(pool, selected["selection"].directory, context.classes)}
    kept = first_of_pool(pool.keys, count)
    return {name: pool.take(kept)} if len(kept) == count * len(context.classes) else {}
