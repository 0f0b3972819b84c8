"""An ablation: the rows of a table, each a change of one recipe, run over generator seeds and IPCs, sharing
all they can.

A row is a set of overrides, or a baseline of real images. Every (row, IPC, seed) is a run of the pipeline as
far as its evaluation: fingerprints see to it that rows encode, invert and sample once for what they have in
common. What it gives is plain data, ablation.json, that evaluation.statistics compares and report.ablation
shows.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import NO_PROTOCOL
from ims3_ray.pipeline.prepare import begin
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.runs import records
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory, fingerprint

from .document import Steps, describe
from .plan import Cell, Plan

EVALUATIONS_AT_ONCE = 4  # fewer would leave cores idle while another writes or reads


def run(ablation: Plan, say: Callable[[str], None]) -> tuple[dict[str, Any], Directory]:
    """The document, and the folder below the storage root for what is made of it. Cells that are complete are
    found.

    Raises InputError, before any heavy work, for a row that can't be run.
    """
    configs = ablation.configs()
    first = next(iter(configs.values()))
    if first.evaluate.protocol == NO_PROTOCOL:
        raise InputError("evaluate.protocol: an ablation compares accuracies; name a protocol")
    contexts = dict(zip(configs, begin(list(configs.values()), say), strict=True))
    storage = next(iter(contexts.values())).storage
    key = fingerprint([ablation.rows.baseline, [config.results() for config in configs.values()]])
    out = storage / "ablations" / f"{first.recipe}-{key}"
    place, cells = f"ablations/{out.name}/artifacts.json", _artifacts(ablation, contexts)
    records.write(storage, place, cells, key=out.name)
    document = describe(ablation, contexts, _make(ablation, contexts, say))
    records.write(storage, place, cells, key=out.name, state=records.FINISHED)
    return document, out


def _artifacts(ablation: Plan, contexts: Mapping[Cell, Context]) -> list[str]:
    """What the cells need, those for the pool alone as far as their selection."""
    cells = [
        _upto(plan(context), "evaluate" if cell[1] in ablation.ipcs else "select")
        for cell, context in contexts.items()
    ]
    return records.places(step.directory for steps in cells for step in steps)


def _make(ablation: Plan, contexts: Mapping[Cell, Context], say: Callable[[str], None]) -> dict[Cell, Steps]:
    """The steps of every cell by noun, those made that are missing: one run after another, evaluations
    several at once.
    """
    for number, (cell, context) in enumerate(contexts.items()):
        for step in _upto(plan(context), "export" if cell[1] in ablation.ipcs else "select"):
            if step.manifest is None:
                name, ipc, seed = cell
                where = f"{name}, ipc {ipc}, seed {seed}: {step.stage.name} → {step.directory.uri}"
                say(f"[{number + 1}/{len(contexts)}] {where}")
                run_step(context, step)
    with ThreadPoolExecutor(EVALUATIONS_AT_ONCE) as pool:
        scored = {cell: context for cell, context in contexts.items() if cell[1] in ablation.ipcs}
        made = dict(zip(scored, pool.map(_evaluated, scored.values()), strict=True))
    pools = {cell: context for cell, context in contexts.items() if cell not in made}
    return made | {
        cell: {s.stage.noun: s for s in _upto(plan(context), "select")} for cell, context in pools.items()
    }


def _upto(steps: Sequence[Step], last: str) -> list[Step]:
    return list(steps)[: [step.stage.name for step in steps].index(last) + 1]


def _evaluated(context: Context) -> dict[str, Step]:
    """The steps of a run by noun, its evaluation made where it is missing."""
    steps = {step.stage.noun: step for step in _upto(plan(context), "evaluate")}
    if steps["evaluation"].manifest is None:
        steps["evaluation"] = run_step(context, steps["evaluation"])
    return steps
