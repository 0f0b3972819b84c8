"""An ablation: rows of a table, each a change of one recipe, over seeds and IPCs, sharing all they can.

A row is a set of overrides, or a baseline of real images. Every (row, IPC, seed) is a run of the pipeline as
far as its evaluation: fingerprints see to it that rows encode, invert and sample once for what they have in
common. What it gives is plain data, ablation.json, which `comparison` compares and `page` shows.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context

from ims3_ray.cluster.tasks import STOP
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import NO_PROTOCOL
from ims3_ray.pipeline.prepare import prepare_runs
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.progress import bar, hide_inner_bars, spinner
from ims3_ray.runs import records
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory, fingerprint

from .comparison import Ablation
from .document import Steps, describe
from .plan import Cell, Plan

EVALUATIONS_AT_ONCE = 4  # fewer would leave cores idle while another writes or reads


def run(ablation: Plan, say: Callable[[str], None]) -> tuple[Ablation, Directory]:
    """The document, and the folder below the storage root for what is made of it. Complete cells are found.

    Raises InputError, before any heavy work, for a row that can't be run.
    """
    configs = ablation.configs()
    first = next(iter(configs.values()))
    if first.evaluate.protocol == NO_PROTOCOL:
        raise InputError("evaluate.protocol: an ablation compares accuracies; name a protocol")
    with spinner("start"):
        contexts = dict(zip(configs, prepare_runs(list(configs.values()), say), strict=True))
    storage = next(iter(contexts.values())).storage
    key = fingerprint([ablation.rows.baseline, [config.identity() for config in configs.values()]])
    out = storage / "ablations" / f"{first.recipe}-{key}"
    # cells for the pool alone are made as far as their selection
    last = {cell: "evaluate" if cell[1] in ablation.ipcs else "select" for cell in contexts}
    needed = [step.directory for cell, context in contexts.items() for step in plan(context, last[cell])]
    place, needed = f"ablations/{out.name}/artifacts.json", records.artifact_names(needed)
    records.write(storage, place, needed, key=out.name)
    document = describe(ablation, contexts, _make(contexts, last, say))
    records.write(storage, place, needed, key=out.name, state=records.FINISHED)
    return document, out


def _make(
    contexts: Mapping[Cell, Context], last: Mapping[Cell, str], say: Callable[[str], None]
) -> dict[Cell, Steps]:
    """The steps of every cell by noun, missing ones made: cell by cell, but several evaluations at once."""
    for number, (cell, context) in enumerate(contexts.items(), start=1):
        for step in plan(context, "export" if last[cell] == "evaluate" else "select"):
            if step.manifest is None:
                where = "{}, ipc {}, seed {}".format(*cell)
                say(f"[{number}/{len(contexts)}] {where}: {step.stage.name} → {step.directory.uri}")
                run_step(context, step)

    def finish(cell: Cell) -> dict[str, Step]:
        context = contexts[cell]
        steps = plan(context, last[cell])
        return {s.stage.output: s if s.manifest is not None else run_step(context, s) for s in steps}

    stop = threading.Event()
    STOP.set(stop)
    with (
        hide_inner_bars(bar("evaluate", len(contexts), "runs")) as shown,
        ThreadPoolExecutor(EVALUATIONS_AT_ONCE) as pool,
    ):
        made = {cell: pool.submit(copy_context().run, finish, cell) for cell in contexts}
        try:
            for done in as_completed(made.values()):
                done.result()
                shown.update()
        except BaseException:  # a signal, or an evaluation that failed: the others need not be waited for
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return {cell: steps.result() for cell, steps in made.items()}
