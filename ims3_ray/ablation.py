"""An ablation: the rows of a table, each a change of one recipe, run over generator seeds and IPCs, sharing all they can.

A row is a set of overrides, or a baseline of real images. Every (row, IPC, seed) is a run of the pipeline as far as its
evaluation: fingerprints see to it that rows encode, invert and sample once for what they have in common. What it gives
is plain data, ablation.json, that evaluation.statistics compares and report.ablation shows.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import baselines, cluster, preparation, tables
from .artifacts import Directory, fingerprint, read_rows
from .config import Config
from .context import Context
from .data.distilled import is_selected
from .errors import InputError
from .evaluation.protocols import protocol
from .overrides import load_config
from .pipeline import Step, plan, run_step
from .scoring import classifier_seeds
from .stages.evaluate import COVERAGE, first_of_pool

EVALUATIONS_AT_ONCE = 4  # fewer would leave cores idle while another writes or reads
REAL = ("random", *baselines.CORESETS)
YARDSTICKS = ("random", "ceiling")  # beside the rows, whose names these can't be


@dataclass(frozen=True)
class Row:
    """A line of the table: what it changes of the recipe, or which real images it stands for."""

    name: str
    overrides: Mapping[str, Any]
    real: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Rows:
    rows: tuple[Row, ...]
    baseline: str  # the row that differences are taken to

    def __post_init__(self):
        """InputError for a name that stands twice, an unknown baseline, and real images of an unknown kind."""
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise InputError(f"rows: {row.name!r} stands twice; name every row differently")
            if row.name in YARDSTICKS:
                raise InputError(f"rows: the name {row.name!r} is a yardstick's; name the row differently")
            if row.real is not None and row.real not in REAL:
                raise InputError(f"rows: {row.name!r}: real={row.real!r} is unknown; choose one of {', '.join(REAL)}")
            if row.real is not None and row.overrides:
                raise InputError(f"rows: {row.name!r}: real images have no overrides; drop them or real")
        generated = [row.name for row in self.rows if row.real is None]
        if self.baseline not in generated:
            raise InputError(f"rows: baseline {self.baseline!r} is no generated row; choose one of {', '.join(generated)}")


@dataclass(frozen=True)
class Plan:
    """What is run: `recipe` with `overrides`, for every row, IPC and generator seed."""

    recipe: str
    overrides: Mapping[str, Any]
    rows: Rows
    ipcs: tuple[int, ...]
    seeds: tuple[int, ...]
    pool_images: int | None  # images a class whose coverage tells of generators, apart from any IPC; None leaves it out

    def config(self, row: Row, ipc: int, seed: int) -> Config:
        """The run of one cell. Candidates are drawn for the largest IPC, unless the row says otherwise."""
        shared = {
            "sample.pool_ipc": max(self.ipcs),
            "evaluate.full": False,
            "evaluate.baselines": sorted({r.real for r in self.rows.rows if r.real}) if row.name == self.rows.baseline else [],
        }
        return load_config(self.recipe, shared | {**self.overrides, **row.overrides, "ipc": ipc, "seed": seed})


def run(ablation: Plan, say: Callable[[str], None]) -> tuple[dict[str, Any], Directory]:
    """The document, and the folder below the storage root for what is made of it. Cells that are complete are found.

    Raises InputError, before any heavy work, for a row that can't be run.
    """
    generated = [row for row in ablation.rows.rows if row.real is None]
    configs = {
        (row.name, ipc, seed): ablation.config(row, ipc, seed)
        for seed in ablation.seeds for row in generated for ipc in ablation.ipcs
    }  # fmt: skip
    first = next(iter(configs.values()))
    if first.evaluate.protocol == preparation.NO_PROTOCOL:
        raise InputError("evaluate.protocol: an ablation compares accuracies; name a protocol")
    preparation.check_storage(first)
    cluster.connect()
    preparation.check_storage(first)
    machine = cluster.machine(first.workers)
    contexts = {key: preparation.prepare(config, machine) for key, config in configs.items()}
    pools = {
        (row.name, ablation.pool_images, seed): preparation.prepare(ablation.config(row, ablation.pool_images, seed), machine)
        for seed in ablation.seeds for row in generated
        if ablation.pool_images and ablation.config(row, ablation.ipcs[0], seed).select.unit == "image"
    }  # fmt: skip
    preparation.fetch_extractor(first)
    for note in contexts[next(iter(contexts))].notes:
        say(note)
    todo = [(key, context, "export") for key, context in contexts.items()]
    todo += [(key, context, "select") for key, context in pools.items()]
    for number, (key, context, last) in enumerate(todo):
        for step in _upto(plan(context), last):
            if step.manifest is None:
                say(f"[{number + 1}/{len(todo)}] {_named(key)}: {step.stage.name} → {step.directory.uri}")
                run_step(context, step)
    with ThreadPoolExecutor(EVALUATIONS_AT_ONCE) as pool:
        steps = dict(zip(contexts, pool.map(_evaluated, contexts.values()), strict=True))
    chosen = {key: {step.stage.noun: step for step in _upto(plan(context), "select")} for key, context in pools.items()}
    document = _document(ablation, contexts, steps, _coverage(ablation, contexts, steps, chosen))
    key = fingerprint([document[name] for name in ("recipe", "rows", "ipcs", "generator_seeds")])
    return document, contexts[next(iter(contexts))].storage / "ablations" / f"{first.recipe}-{key}"


def _upto(steps: Sequence[Step], last: str) -> list[Step]:
    return list(steps)[: [step.stage.name for step in steps].index(last) + 1]


def _named(key: tuple[str, int, int]) -> str:
    name, ipc, seed = key
    return f"{name}, ipc {ipc}, seed {seed}"


def _evaluated(context: Context) -> dict[str, Step]:
    """The steps of a run by noun, its evaluation made where it is missing."""
    steps = {step.stage.noun: step for step in _upto(plan(context), "evaluate")}
    if steps["evaluation"].manifest is None:
        steps["evaluation"] = run_step(context, steps["evaluation"])
    return steps


def _document(ablation: Plan, contexts: Mapping, steps: Mapping, pools: Mapping[str, Any]) -> dict[str, Any]:
    any_context = next(iter(contexts.values()))
    config, rules = any_context.config, protocol(any_context.config.evaluate.protocol)
    found = {key: of["evaluation"].directory.read_json("evaluation.json") for key, of in steps.items()}
    largest = max(ablation.ipcs)
    rows = []
    for row in ablation.rows.rows:
        source, of_set = (row.name, "distilled") if row.real is None else (ablation.rows.baseline, row.real)
        cells = {ipc: [found[source, ipc, seed] for seed in ablation.seeds] for ipc in ablation.ipcs}
        line = {
            "name": row.name,
            "overrides": dict(row.overrides),
            "is_real": row.real is not None,
            "note": row.note,
            "accuracy": {str(ipc): _accuracies(documents, of_set) for ipc, documents in cells.items()},
            "metrics": {str(ipc): _columns([d["coverage"][of_set] for d in documents]) for ipc, documents in cells.items()},
        }
        if row.real is None:
            runs = [(contexts[source, largest, seed], steps[source, largest, seed]) for seed in ablation.seeds]
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


def _accuracies(documents: Sequence[Mapping], of_set: str) -> dict[str, list[list[float]]]:
    """last and best: a list of the classifier seeds' for each generator seed."""
    return {which: [document["sets"][of_set][which]["values"] for document in documents] for which in ("last", "best")}


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


def _coverage(ablation: Plan, contexts: Mapping, steps: Mapping, chosen: Mapping) -> dict[str, dict[str, list[Any]]]:
    """Coverage of `pool_images` images a class over the seeds: of every row, a random real subset and the ceiling.

    A row that chooses single images chooses so many; of others the first candidates are taken, before any selection. Rows
    with fewer candidates are left out.
    """
    if not ablation.pool_images:
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in ablation.seeds:
        key = (ablation.rows.baseline, max(ablation.ipcs), seed)
        context, features = contexts[key], steps[key]["features"].directory
        real = read_rows(features, tables.FEATURES)
        sets = _real_sets(ablation, context, real, seed)
        for row in ablation.rows.rows:
            if row.real is None:
                vectors = _drawn(context, ablation.pool_images, chosen.get((row.name, ablation.pool_images, seed)),
                                 steps[row.name, max(ablation.ipcs), seed])  # fmt: skip
                sets |= {row.name: vectors} if vectors else {}
        of_real, k = (real["feature"], real["label"]), context.config.evaluate.neighbours
        for name, values in baselines.measure_all(of_real, sets, k, context.classes, COVERAGE).items():
            found.setdefault(name, []).append(values)
    return {name: _columns(records) for name, records in found.items()}


def _drawn(context: Context, count: int, selected: Mapping | None, steps: Mapping) -> baselines.Vectors | None:
    """Features and labels of the selected candidates, or of the first `count` a class where there are so many."""
    rows = read_rows((selected or steps)["candidates"].directory, tables.CANDIDATES, ["label", "subgroup", "index", "feature"])
    if selected:
        selection = selected["selection"].directory.read_json("selection.json")
        kept = np.flatnonzero(is_selected(selection, context.classes, rows))
    else:
        kept = first_of_pool(rows, count)
        if len(kept) < count * len(context.classes):
            return None
    return rows["feature"][kept], rows["label"][kept]


def _real_sets(ablation: Plan, context: Context, real: tables.Columns, seed: int) -> dict[str, baselines.Vectors]:
    """`pool_images` real images a class: those of the rows that stand for real images, and the yardsticks."""
    count, train, first = ablation.pool_images, context.images["train"], classifier_seeds(seed, 1)
    vectors = real["feature"], real["label"]
    ids = {train.ids[row] for row in train.subset(count, "random", first[0])}
    chosen = {"random": np.flatnonzero([image in ids for image in real["image_id"]])}
    kinds = {row.real for row in ablation.rows.rows if row.real}
    coresets = baselines.choose_all(vectors, sorted(kinds - {"random"}), count, first, context.classes)
    chosen |= {name: rows for (name, _), rows in coresets.items()}
    of_rows = {row.name: chosen[row.real] for row in ablation.rows.rows if row.real}
    of_rows["random"] = chosen["random"]
    of_rows["ceiling"] = baselines.ceiling(vectors, count, context.config.evaluate.neighbours, context.classes)
    return {name: (vectors[0][rows], vectors[1][rows]) for name, rows in of_rows.items()}
