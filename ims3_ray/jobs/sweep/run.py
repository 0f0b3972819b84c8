"""A whole sweep: check, make the pools that are known, let Tune run the trials, say what came out as data."""

import json
import time
from collections.abc import Callable
from dataclasses import replace

import yaml

from ims3_ray.config.settings import WEIGHTS
from ims3_ray.pipeline.prepare import pinned, prepare_runs
from ims3_ray.pipeline.steps import plan
from ims3_ray.progress import print_line as say_line
from ims3_ray.progress import run_name, spinner
from ims3_ray.runs import tags
from ims3_ray.runs.event_log import save_library_log
from ims3_ray.runs.mlflow_tracker import Tracker
from ims3_ray.runs.records import PLANNED
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.lease import exclusive, heartbeat

from .document import Document, describe, trials_csv, winner_file
from .mlflow_callback import Scribe
from .page import render_sweep
from .plan import Sweep
from .pool_actor import LAST, make_pool
from .search_space import Values
from .trial_state import Trial, read_trial, read_trials
from .tuner import run_trials


def run(sweep: Sweep, print_line: Callable[[str], None] = say_line) -> tuple[Document, Directory]:
    """sweep.json, and the folder below the storage root that holds it, its page and the winners' recipes.

    Trials that are over are found. Raises InputError, before any heavy work, for what can't be run; a trial
    that fails later is recorded, and the others go on.
    """
    sweep = pin_models(sweep)
    points = sweep.points()
    with spinner("start"):
        contexts = prepare_runs(
            [sweep.config(values) for values in points or [sweep.space.any()]], print_line
        )
    folder = contexts[0].storage / "sweeps" / f"{contexts[0].config.recipe}-{sweep.key}"
    with exclusive(folder):
        return _run(sweep, points, contexts, folder, print_line), folder


def _run(
    sweep: Sweep,
    points: list[Values] | None,
    contexts: list[Context],
    folder: Directory,
    print_line: Callable[[str], None],
) -> Document:
    first, count = contexts[0], len(points) if points else sweep.trials
    tracker = _track(sweep, first, print_line)
    began = time.time()
    _announce(sweep, points or [], contexts, folder)
    scribe = Scribe(sweep, first, folder, count, tracker.run_id, print_line)
    if len(scribe.found) < count:
        tracker.resume()
    made: set[str] = set()
    with run_name(sweep.name), heartbeat(folder), save_library_log(folder):
        try:
            for context in contexts if points else ():
                made |= make_pool(context, print_line)
            made |= run_trials(sweep, points, first, folder, scribe)
        except BaseException as error:
            is_failure = isinstance(error, Exception)  # else somebody stopped it, and waits
            scribe.stop()
            tracker.finish("FAILED" if is_failure else "KILLED", patient=is_failure)
            raise
        with spinner("tables"):
            trials = scribe.write_up(read_trials(folder))
            document = describe(sweep, first, folder, trials, made, time.time() - began)
            _publish(sweep, document, trials, folder, tracker)
    return document


def pin_models(sweep: Sweep) -> Sweep:
    """The sweep with its hub ids at the commits that they mean now, for every trial."""
    before, now = (config.model_dump() for config in (sweep.base, pinned(sweep.base)))
    pins = {f"{s}.{f}": now[s][f] for s, f in WEIGHTS if now[s].get(f) != before[s].get(f)}
    return replace(sweep, overrides={**sweep.overrides, **pins})


def _announce(sweep: Sweep, points: list[Values], contexts: list[Context], folder: Directory) -> None:
    """Write records of the trials to come, before anything is made: what they need is not deleted."""
    for number, values in enumerate(points):
        if read_trial(folder, values) is None:
            needed = [step.artifact for step in plan(contexts[number], LAST)]
            planned = Trial(number, values, PLANNED, artifacts=needed, key=sweep.trial_tag(values))
            planned.write(folder)


def _track(sweep: Sweep, context: Context, print_line: Callable[[str], None]) -> Tracker:
    """MLflow's run of the sweep, its trials' parent; before them, so that one alone makes a database."""
    tracker = Tracker(context.storage, print_line)
    own = tags.run_tags(context) | {tags.KIND: tags.SWEEP}
    tracker.start(sweep.key, sweep.name, sweep.params(), own)
    return tracker


def _publish(
    sweep: Sweep, document: Document, trials: list[Trial], folder: Directory, tracker: Tracker
) -> None:
    """Write the sweep's files, and log them with the best figures to its MLflow run."""
    by_number = {trial.number: trial for trial in trials}
    files = {
        "sweep.json": json.dumps(document, indent=1).encode(),
        "sweep.csv": trials_csv(document),
        "index.html": render_sweep(document, trials),
    }
    for ipc, number in document["best"].items():
        winner, metrics = by_number[number].values, by_number[number].metrics
        by = f"by {sweep.objective[0]} on {document['split']} images"
        head = f"# Sweep {sweep.key}: the best at {ipc} images a class {by}."
        body = yaml.safe_dump(sweep.winner(winner).results(), sort_keys=False, allow_unicode=True)
        files[winner_file(ipc)] = f"{head}\n{body}".encode()
        tracker.log(0, {f"best/{name}/ipc{ipc}": metrics[name] for name in sweep.objective})
    for name, data in files.items():
        folder.write(name, data)
    counts = {"trials": len(trials), "pools": len(document["pools"])}
    seconds = {"seconds": document["seconds"], "saved_seconds": document["saved_seconds"]}
    tracker.log(0, counts | seconds)
    for name, data in files.items():
        tracker.log_file(name, data)
    tracker.finish("FINISHED")
