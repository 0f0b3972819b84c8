"""A whole sweep in the driver: check, record what it needs, make what trials share, run Tune, publish."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import yaml

from ims3_ray.config.load import unpinned
from ims3_ray.config.settings import WEIGHTS
from ims3_ray.errors import InputError, describe_error
from ims3_ray.pipeline.prepare import pinned, prepare_runs
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.progress import print_line as print_to_terminal
from ims3_ray.progress import run_name, spinner
from ims3_ray.runs import tags
from ims3_ray.runs.event_log import save_library_log
from ims3_ray.runs.mlflow_tracker import Tracker
from ims3_ray.runs.records import FINISHED, PLANNED
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory, fingerprint
from ims3_ray.storage.lease import exclusive, heartbeat

from .mlflow_callback import MlflowCallback
from .page import render_sweep
from .plan import LAST, RowSweep, Sweep, as_words, trial_key
from .results import Document, describe_sweep, trials_csv, winner_file
from .row_metrics import describe_rows
from .search_space import Values
from .tables import comparison_lines, metrics_for_mlflow
from .trial import Trial, read_trial, read_trials
from .tuner import run_trials


def run(sweep: Sweep, print_line: Callable[[str], None] = print_to_terminal) -> tuple[Document, Directory]:
    """Run the sweep; returns sweep.json and its folder below the storage root.

    Trials that are over are not run again. Raises InputError before any heavy work if the sweep can't be run.
    A trial that fails later is recorded, and the others go on.
    """
    sweep = pin_models(sweep)
    points = sweep.points()
    more = sweep.selection_points()
    runs = [*(points or [sweep.space.first()]), *more]
    with spinner("start"):
        contexts = prepare_runs([sweep.config(values) for values in runs], print_line)
    fewest = int(contexts[0].images["train"].counts().min())
    if isinstance(sweep, RowSweep) and (sweep.pool_images or 0) > fewest:
        raise InputError(f"--pool-images: {sweep.pool_images}, but a class has {fewest} images; lower it")
    last = [LAST] * (len(runs) - len(more)) + ["select"] * len(more)
    steps = [plan(*run) for run in zip(contexts, last, strict=True)]
    sweep = replace(sweep, evaluations=fingerprint([planned[-1].fingerprint for planned in steps]))
    by_key = dict(zip(map(trial_key, runs), contexts, strict=True))
    folder = contexts[0].storage / "sweeps" / f"{contexts[0].config.recipe}-{sweep.key}"
    with exclusive(folder):
        plan_trials(sweep, points or [], dict(zip(by_key, steps, strict=True)), folder)
        return _run(sweep, points, by_key, folder, print_line), folder


def _run(
    sweep: Sweep,
    points: list[Values] | None,
    contexts: dict[str, Context],
    folder: Directory,
    print_line: Callable[[str], None],
) -> Document:
    first = next(iter(contexts.values()))
    began, tracker = time.time(), Tracker(first.storage, print_line)  # of the trials' parent run
    own = tags.run_tags(first) | {tags.KIND: tags.SWEEP}
    tracker.start(sweep.key, sweep.name, sweep.params(), own)
    count = len(points) if points and sweep.search == "grid" else sweep.trials
    callback = MlflowCallback(sweep, first, folder, count, tracker.run_id, print_line)
    if len(callback.found) < count:
        tracker.resume()
    with run_name(sweep.name), heartbeat(folder), save_library_log(folder):
        try:
            has_pools = make_shared(sweep, points or [], contexts, print_line)
            run_trials(sweep, first, folder, callback)
        except BaseException as error:
            callback.stop()
            tracker.abort(error)
            raise
        with spinner("tables"):
            trials = callback.write_runs(read_trials(folder))
            document = describe_sweep(sweep, first, folder, trials, time.time() - began)
            if isinstance(sweep, RowSweep) and has_pools and all(trial.error is None for trial in trials):
                document["comparison"] = describe_rows(sweep, contexts)
            _publish(sweep, document, trials, folder, tracker)
    return document


def pin_models(sweep: Sweep) -> Sweep:
    """The sweep with its hub models at their present commits, the same for every trial."""
    before, now = (config.model_dump() for config in (sweep.base, pinned(sweep.base)))
    pins = {
        f"{s}.{f}": now[s][f]
        for s, f in WEIGHTS
        # a local path stays, or what the recipe says about it would be dropped as another model's
        if now[s].get(f) != before[s].get(f) and unpinned(now[s].get(f)) == unpinned(before[s].get(f))
    }
    return replace(sweep, overrides={**sweep.overrides, **pins})


def plan_trials(
    sweep: Sweep, points: list[Values], steps: Mapping[str, list[Step]], folder: Directory
) -> None:
    """Record the trials to come before anything is made, so that what they need is not deleted.

    The first trial's record also names the selections of `selection_points`. A finished trial whose
    evaluation was deleted is to come again.
    """
    others = [step.artifact for values in sweep.selection_points() for step in steps[trial_key(values)]]
    for number, values in enumerate(points):
        planned, trial = steps[trial_key(values)], read_trial(folder, values)
        if trial is None or (trial.state == FINISHED and planned[-1].manifest is None):
            own = [step.artifact for step in planned]
            trial = Trial(number, values, PLANNED, artifacts=[*others, *own], key=sweep.trial_tag(values))
            trial.write(folder)
        others = []


def make_shared(
    sweep: Sweep, points: list[Values], contexts: dict[str, Context], print_line: Callable[[str], None]
) -> bool:
    """Make the missing artefacts that trials share, one after the other: each may use the whole cluster.

    Prints failures. Returns whether `selection_points` are complete.
    """
    has_pools = True
    last = [(values, sweep.last_shared) for values in points]
    last += [(values, "select") for values in sweep.selection_points()]
    for values, stage in last:
        context = contexts[trial_key(values)]
        row = f"{as_words(values)}: " if isinstance(sweep, RowSweep) else ""
        try:
            for step in plan(context, stage):
                if step.manifest is None:
                    print_line(f"{row}{step.stage.name} → {step.directory.uri}")
                    run_step(context, step)
        except Exception as error:
            print_line(f"{as_words(values)}: {describe_error(error)}")
            has_pools &= stage != "select"
    return has_pools


def _publish(
    sweep: Sweep, document: Document, trials: list[Trial], folder: Directory, tracker: Tracker
) -> None:
    """Write the sweep's files, and log them with its metrics to its MLflow run."""
    by_number = {trial.number: trial for trial in trials}
    step = sum(trial.is_over for trial in trials)  # a resumed sweep logs its metrics anew
    files = {
        "sweep.json": json.dumps(document, indent=1).encode(),
        "sweep.csv": trials_csv(document),
        "index.html": render_sweep(document),
    }
    if comparison := document["comparison"]:
        lines = comparison_lines(document)
        files["comparison.txt"] = ("\n".join(lines) + "\n").encode()
        tracker.log(step, metrics_for_mlflow(comparison))
    for ipc, number in document["best"].items():
        winner, metrics = by_number[number].values, by_number[number].metrics
        by = f"by {sweep.objective[0]} on {document['split']} images"
        head = f"# Sweep {sweep.key}: the best at {ipc} images per class {by}."
        body = yaml.safe_dump(sweep.winner(winner).results(), sort_keys=False, allow_unicode=True)
        files[winner_file(ipc)] = f"{head}\n{body}".encode()
        tracker.log(step, {f"best/{name}/ipc{ipc}": metrics[name] for name in sweep.objective})
    for name, data in files.items():
        folder.write(name, data)
    counts = {"trials": len(trials), "pools": len(document["pools"])}
    seconds = {"seconds": document["seconds"], "saved_seconds": document["saved_seconds"]}
    tracker.log(step, counts | seconds)
    for name, data in files.items():
        tracker.log_file(name, data)
    tracker.finish("FINISHED")
