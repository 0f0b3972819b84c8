"""A whole sweep: check, make the pools that are known, let Tune run the trials, and say what came out as
data.
"""

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
import yaml
from ray import tune

from ims3_ray.evaluation.protocols import protocol
from ims3_ray.pipeline.prepare import begin
from ims3_ray.runs import tags
from ims3_ray.runs.tracking import Tracker
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .document import best_places, describe, trials_csv
from .keeper import Keeper, make_pool, steps_of
from .page import render_sweep
from .plan import Sweep, trial_key
from .records import Trial, read_trial, read_trials
from .schedule import ByIPC
from .scribe import Scribe
from .trial import LOOK, Runner

# the new one prints boxes whatever it is told; a line a trial is ours
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
CPUS_PER_TRIAL = 0.05  # its work is done by tasks that reserve their own
MAX_FAILURES = 3  # of a trial's process; what a trial raises itself is not tried again


def run(sweep: Sweep, told: Callable[[str], None] = print) -> tuple[dict[str, Any], Directory]:
    """sweep.json as data, and the folder below the storage root that holds it, its page and the winners'
    recipes.

    Trials that are over are found. Raises InputError, before any heavy work, for what can't be run; a trial
    that fails later is recorded, and the others go on.
    """
    points = sweep.points()
    contexts = begin([sweep.config(values) for values in points or [sweep.space.any()]], told)
    folder = contexts[0].storage / "sweeps" / f"{contexts[0].config.recipe}-{sweep.key}"
    tracker = _track(sweep, contexts[0], told)
    began = time.time()
    if points:
        _announce(sweep, points, contexts, folder)
    scribe = Scribe(
        sweep, contexts[0], folder, sweep.trials if points is None else len(points), tracker.run_id, told
    )
    try:
        made = set().union(*(make_pool(context, told) for context in contexts if points))
        made |= _tune(sweep, points, contexts[0], folder, scribe)
    except BaseException:
        tracker.finish("FAILED")
        raise
    ran = scribe.write_up_all(read_trials(folder))
    document = describe(sweep, contexts[0], ran, made, time.time() - began)
    _publish(sweep, document, folder, tracker)
    return document, folder


def _announce(sweep: Sweep, points: list, contexts: list[Context], folder: Directory) -> None:
    """Write records of trials that are to come, before anything is made: nothing that they will need is
    deleted.
    """
    for number, (values, context) in enumerate(zip(points, contexts, strict=True)):
        if read_trial(folder, values) is None:
            needed = [f"{step.stage.noun}/{step.fingerprint}" for step in steps_of(context)]
            Trial(number, values, artifacts=needed, key=sweep.key_of(values)).write(folder)


def _track(sweep: Sweep, context: Context, heard: Callable[[str], None]) -> Tracker:
    """MLflow's run of the sweep, the parent of its trials'; made before any of them, so that only one makes a
    database.
    """
    tracker = Tracker(context.storage, heard)
    space = {f"space.{field}": str(domain) for field, domain in sweep.space.describe().items()}
    chosen = {
        "search": sweep.search,
        "trials": sweep.trials,
        "objective": ",".join(sweep.objective),
        "asha": sweep.asha,
    }
    params, told = sweep.base.results() | space | chosen, tags.describe_run(context) | {tags.KIND: tags.SWEEP}
    tracker.start(sweep.key, f"sweep-{context.config.recipe}-{sweep.key}", params, told)
    return tracker


def _tune(sweep: Sweep, points: list | None, context: Context, folder: Directory, scribe: Scribe) -> set[str]:
    """Run the trials until each has ended in one way or another; gives the artefacts that their keeper made."""
    machine = replace(context.machine, workers=context.machine.workers.model_copy(update={"shards": 1}))
    numbers = {trial_key(values): number for number, values in enumerate(points or [])}
    keeper = Keeper.remote(sweep, machine, folder, numbers, uuid.uuid4().hex)
    runner = Runner(sweep, machine, folder, keeper)
    (folder / "tune").delete()
    tuner = tune.Tuner(
        tune.with_resources(called(runner), {"CPU": CPUS_PER_TRIAL}),
        param_space=_param_space(sweep, points),
        tune_config=tune.TuneConfig(
            num_samples=sweep.trials if points is None else 1,
            search_alg=_bayes(sweep, folder) if points is None else None,
            scheduler=_asha(sweep, context) if sweep.asha else None,
            max_concurrent_trials=machine.trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[scribe],
            verbose=0,
        ),
    )
    tuner.fit()
    return ray.get(keeper.made.remote())


def called(runner: Runner) -> Callable[[dict[str, Any]], None]:
    """The runner as Tune takes it: a plain function of the values that it chose."""
    return lambda drawn: runner(drawn)


def _param_space(sweep: Sweep, points: list | None) -> dict[str, Any]:
    if points is None:
        return {field: domain.tune() for field, domain in sweep.space.domains.items()}
    return {"values": tune.grid_search(points)}


def _bayes(sweep: Sweep, folder: Directory) -> Any:
    """Optuna's TPE over the objectives. Trials that are over come first, and are found: that is how it goes
    on.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    domains = sweep.space.domains
    found = [
        {field: domain.encode(record.values[field]) for field, domain in domains.items()}
        for record in read_trials(folder)
        if record.is_over
    ]
    several = len(sweep.objective) > 1
    return OptunaSearch(
        metric=list(sweep.objective) if several else sweep.objective[0],
        mode=["max"] * len(sweep.objective) if several else "max",
        points_to_evaluate=found,
        seed=sweep.base.seed + len(found),  # else a sweep that goes on would draw again what it drew first
    )


def _asha(sweep: Sweep, context: Context) -> ByIPC:
    looks = protocol(context.config.evaluate.protocol).evaluations + 1
    options = {"time_attr": LOOK, "metric": "accuracy", "mode": "max", "max_t": looks}
    return ByIPC(lambda trial: sweep.config(sweep.values(trial.config)).ipc, options)


def _publish(sweep: Sweep, document: dict[str, Any], folder: Directory, tracker: Tracker) -> None:
    """Write the sweep's files, and log them with the best figures to its MLflow run."""
    winners = {
        ipc: sweep.winner(document["trials"][place]["values"]) for ipc, place in best_places(document).items()
    }
    files = {
        "sweep.json": json.dumps(document, indent=1).encode(),
        "sweep.csv": trials_csv(document),
        "index.html": render_sweep(document),
    }
    for ipc, config in winners.items():
        head = f"# Sweep {sweep.key}: the best at {ipc} images a class by {sweep.objective[0]} on {document['split']} images."
        body = yaml.safe_dump(config.results(), sort_keys=False, allow_unicode=True)
        files[f"best-ipc{ipc}.yaml"] = f"{head}\n{body}".encode()
    for name, data in files.items():
        folder.write(name, data)
    for ipc, place in best_places(document).items():
        figures = document["trials"][place]["metrics"]
        tracker.log(0, {f"best/{name}/ipc{ipc}": figures[name] for name in sweep.objective})
    counts = {"trials": len(document["trials"]), "pools": len(document["pools"])}
    tracker.log(0, counts | {name: document[name] for name in ("seconds", "saved_seconds")})
    for name, data in files.items():
        tracker.log_file(name, data)
    tracker.finish("FINISHED")
