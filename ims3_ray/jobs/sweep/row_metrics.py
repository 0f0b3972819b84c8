"""The rows' accuracies, coverage and cost, read from the artefacts of a complete comparison."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ims3_ray.evaluation.results import Evaluation
from ims3_ray.method.coverage import Values
from ims3_ray.pipeline.steps import Step, plan
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.baselines import measure_coverage
from ims3_ray.stages.evaluate.classifiers import classifier_seeds
from ims3_ray.stages.evaluate.compare import Real, choose_baselines, real_features
from ims3_ray.stages.evaluate.stage import first_of_pool
from ims3_ray.stages.selected import KEYS, selected_rows
from ims3_ray.storage.rows import Index, read_index
from ims3_ray.storage.schemas import CANDIDATES, FEATURES

from .comparison import Accuracy, Column, RowResults, RowsDocument
from .plan import LAST, RowSweep, trial_key
from .rows import YARDSTICKS, Row

# artefacts whose time counts as a row's cost
COSTS = ("latents", "inversions", "adapter", "features", "candidates", "selection", "probes", "refined")
Value = TypeVar("Value")


def describe_rows(sweep: RowSweep, contexts: Mapping[str, Context]) -> RowsDocument:
    """The comparison in sweep.json. `contexts` are by `trial_key`; their artefacts are complete."""
    runs = Runs(sweep, contexts)
    pools = runs.pools() if sweep.pool_images else {}
    return {
        "baseline": sweep.rows.baseline,
        "ipcs": list(sweep.ipcs),
        "generator_seeds": list(sweep.seeds),
        "pool_images": sweep.pool_images,
        "rows": [runs.results(row, pools.get(row.name)) for row in sweep.rows.rows],
        "yardsticks": {n: {k: v[0] for k, v in pools[n].items()} for n in YARDSTICKS} if pools else None,
    }


class Runs:
    """The runs of a comparison by row, IPC and seed."""

    def __init__(self, sweep: RowSweep, contexts: Mapping[str, Context]):
        self._sweep, self._contexts = sweep, contexts

    def results(self, row: Row, pool: dict[str, Column] | None) -> RowResults:
        sweep = self._sweep
        name, scored = sweep.rows.host(row) or row.name, row.real or "distilled"
        documents: dict[str, list[Evaluation]] = {}
        for ipc in sweep.ipcs:
            steps = [self._steps(name, ipc, seed)["evaluation"] for seed in sweep.seeds]
            documents[str(ipc)] = [step.directory.read_json("evaluation.json") for step in steps]
        seconds: list[dict[str, float]] = []
        device_seconds = [0.0] * len(sweep.seeds)
        if row.real is None:
            largest = max(sweep.ipcs)
            seconds = [self._seconds(row.name, largest, seed) for seed in sweep.seeds]
            actors = self._context(row.name, largest, sweep.seeds[0]).machine.actors
            device_seconds = [sum(by_stage.values()) * actors for by_stage in seconds]
        accuracies = _accuracies(scored, documents)
        covered = {i: _columns([d["coverage"].get(scored, {}) for d in ds]) for i, ds in documents.items()}
        return {
            "name": row.name,
            "overrides": dict(row.overrides),
            "is_real": row.real is not None,
            "packing": row.packing,
            "stored": {ipc: ds[0]["sets"][scored].get("stored") for ipc, ds in documents.items()},
            "note": row.note,
            "accuracy": accuracies.pop(documents[str(sweep.ipcs[0])][0]["protocol"]),
            "networks": accuracies,
            "metrics": covered,
            "seconds": _columns(seconds),
            "device_seconds": device_seconds,
            "pool": pool,
        }

    def pools(self) -> dict[str, dict[str, Column]]:
        """Coverage of `pool_images` images per class over the seeds, of every row and of the yardsticks.

        A row that selects single images has selected that many. Other rows take their first candidates,
        before selection. Refinement is not in it. Rows with fewer candidates, with another extractor, or
        that refine real medoids are left out.
        """
        count, rows = self._sweep.pool_images or 0, self._sweep.rows
        records: dict[str, list[Values]] = {}
        for seed in self._sweep.seeds:
            host = next(iter(rows.generated))
            context = self._context(host, max(self._sweep.ipcs), seed)
            train, neighbours = context.images["train"], context.config.evaluate.neighbours
            features = self._steps(host, max(self._sweep.ipcs), seed)["features"].directory
            index = read_index(features, FEATURES, ["image_id", "label"])
            real = Real.by_id(train, index)
            candidates: dict[str, Index] = {}
            for name in rows.generated:
                point = name, max(self._sweep.ipcs), seed
                steps = self._steps(*point)
                if "candidates" in steps and steps["features"].directory == features:
                    candidates |= self._candidates(name, count, seed)
            names = dict.fromkeys(["random", *(row.real for row in rows.rows if row.real)])
            draw = classifier_seeds(seed, 1)
            choices = choose_baselines(real, names, [[count] * len(train.classes)], draw)
            by_name = real_features(choices, real, draw[0], neighbours, count)
            sets: dict[str, Index] = {**candidates, **{name: by_name[name] for name in YARDSTICKS}}
            sets |= {row.name: by_name[row.real] for row in rows.rows if row.real and row.packing == 1}
            coverage = measure_coverage(real.features, sets, neighbours, train.classes)
            for name, values in coverage.items():
                records.setdefault(name, []).append(values)
        return {name: _columns(by_seed) for name, by_seed in records.items()}

    def _context(self, row: str, ipc: int, seed: int) -> Context:
        return self._contexts[trial_key({"seed": seed, "row": row, "ipc": ipc})]

    def _steps(self, row: str, ipc: int, seed: int) -> dict[str, Step]:
        """By noun."""
        return {step.stage.output: step for step in plan(self._context(row, ipc, seed), LAST)}

    def _seconds(self, row: str, ipc: int, seed: int) -> dict[str, float]:
        """A single run's time by stage; artefacts that other rows made count in full."""
        steps = self._steps(row, ipc, seed)
        needed = (steps[noun] for noun in COSTS if noun in steps)
        return {step.stage.name: step.manifest["seconds"] for step in needed if step.manifest}

    def _candidates(self, row: str, count: int, seed: int) -> dict[str, Index]:
        """The row's selected candidates, or its first `count` per class if it has that many."""
        largest = max(self._sweep.ipcs)
        context = self._context(row, largest, seed)
        is_selected = self._sweep.selects_pool_images(context.config)
        steps = self._steps(row, count if is_selected else largest, seed)
        pool = read_index(steps["candidates"].directory, CANDIDATES, KEYS)
        if is_selected:
            return {row: selected_rows(pool, steps["selection"].directory, context.classes)}
        first = first_of_pool(pool.keys, count)
        return {row: pool.take(first)} if len(first) == count * len(context.classes) else {}


def _accuracies(scored: str, documents: Mapping[str, Sequence[Evaluation]]) -> dict[str, Accuracy]:
    """By the protocol's label, for every network. `documents` are by IPC."""
    by_network: dict[str, Accuracy] = {}
    for ipc, by_seed in documents.items():
        networks = [d.get("networks") or {d["protocol"]: d["sets"]} for d in by_seed]
        for label in networks[0]:
            values = {w: [sets[label][scored][w]["values"] for sets in networks] for w in ("last", "best")}
            by_network.setdefault(label, {})[ipc] = values
    return by_network


def _columns(records: Sequence[Mapping[str, Value]]) -> dict[str, Sequence[Value]]:
    """A mapping per generator seed as a list over the seeds per name."""
    return {name: [record[name] for record in records] for name in (records[0] if records else ())}
