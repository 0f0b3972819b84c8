"""A trial: its record, by which a sweep resumes, and its run in a process of its own.

A record is <root>/sweeps/<recipe>-<key>/trials/<trial>.json, written when the trial begins and when it ends.
It also names the artefacts that the trial needs (ims3_ray.runs.records).
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import ray
from ray import tune
from ray.actor import ActorHandle

from ims3_ray.cluster.resources import Machine
from ims3_ray.errors import InputError, describe_error
from ims3_ray.evaluation.results import CURVE, headline_metrics, mean_curve
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.progress import run_name
from ims3_ray.runs.records import FAILED, FINISHED, RUNNING, STOPPED, now
from ims3_ray.runs.tags import OBJECTIVES, prefix_metrics
from ims3_ray.storage.artifacts import Directory

from .plan import LAST, Sweep, trial_key
from .search_space import Value, Values

TRIALS = "trials"
EVAL = "look"  # Tune's time_attr: number of evaluations so far; the end of the trial counts as one more
STEP = "step"  # of the classifiers' training
NEVER = 10**9  # an EVAL beyond any trial's, at which no scheduler compares
POLL_S = 0.5


@dataclass(frozen=True)
class Trial:
    """A trial's record. The metrics of a stopped trial are its last reported ones."""

    number: int
    values: Values
    state: str = RUNNING
    metrics: Mapping[str, float] = field(default_factory=dict)
    # all metrics of the trial's MLflow run, by their names there
    figures: Mapping[str, float] = field(default_factory=dict)
    interval: float | None = None
    history: Sequence[tuple[int, float]] = ()  # (step, accuracy), the mean over classifier seeds
    error: str | None = None
    began: float | None = None  # Unix seconds, of the last start
    seconds: float | None = None
    pool: str | None = None  # fingerprint of the candidates
    # artefact up to the candidates → seconds that it took
    upstream: Mapping[str, float] = field(default_factory=dict)
    artifacts: Sequence[str] = ()  # noun/fingerprint
    mlflow_run_id: str | None = None
    owner: Sequence[str] = ()  # the driver's session and the id of Tune's trial that last ran it
    key: str = ""  # the tag of its MLflow run
    written: str = ""

    @property
    def ended(self) -> float | None:
        """Unix seconds; None if unknown."""
        return None if self.began is None or self.seconds is None else self.began + self.seconds

    @property
    def is_over(self) -> bool:
        """Whether the trial needs no further run. A failed trial is run again: its cause may have gone."""
        return self.state in (FINISHED, STOPPED)

    def write(self, folder: Directory, **changes: object) -> "Trial":
        """Write the record with `changes` and return it."""
        trial = replace(self, **{**changes, "written": now()})  # pyright: ignore[reportArgumentType]
        (folder / TRIALS).write_json(f"{trial_key(self.values)}.json", asdict(trial))
        return trial


def read_trial(folder: Directory, values: Mapping[str, Value]) -> Trial | None:
    name = f"{trial_key(values)}.json"
    return Trial(**(folder / TRIALS).read_json(name)) if (folder / TRIALS).exists(name) else None


def read_trials(folder: Directory) -> list[Trial]:
    """Every trial, by number."""
    trials = folder / TRIALS
    records = [Trial(**trials.read_json(name)) for name in trials.files() if name.endswith(".json")]
    return sorted(records, key=lambda trial: trial.number)


def next_number(folder: Directory) -> int:
    return 1 + max((trial.number for trial in read_trials(folder)), default=-1)


@dataclass(frozen=True)
class Trainable:
    """The function that Tune calls with a trial's config, as an object that Tune's workers unpickle."""

    sweep: Sweep
    machine: Machine
    folder: Directory
    pools: ActorHandle  # PoolActor

    def __call__(self, config: Mapping[str, object]) -> None:
        values = self.sweep.space.decode(config)
        trial, is_mine = ray.get(self.pools.claim.remote(values, tune.get_context().get_trial_id()))
        if is_mine:
            Run(self, trial).run()
            return
        while not trial.is_over and trial.state != FAILED:  # another trial of Tune runs the same values
            time.sleep(POLL_S)
            trial = read_trial(self.folder, values) or trial
        if trial.state == FAILED:
            self.report_failure()
            return
        for number, (step, accuracy) in enumerate(trial.history, start=1):
            self.report({"accuracy": accuracy, STEP: step}, number)
        self.report(trial.metrics, len(trial.history) + 1)

    def report(self, metrics: Mapping[str, float], evaluation: int) -> None:
        """Report to Tune, which requires every objective in every report: NaN for those not measured yet."""
        unknown = dict.fromkeys(("accuracy", *self.sweep.objective), math.nan)
        tune.report({**unknown, **metrics, EVAL: evaluation})

    def report_failure(self) -> None:
        """Report no result. An exception would make Tune try again, which is meant for dead processes."""
        self.report({}, NEVER)


class Run:
    """A trial at work: the pipeline with the trial's values, reported to Tune as it goes."""

    def __init__(self, trainable: Trainable, trial: Trial):
        self._trainable, self._trial = trainable, trial
        self._history: list[tuple[int, float]] = []
        self._metrics: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._began = time.perf_counter()

    def run(self) -> None:
        try:
            with run_name(self._trainable.sweep.trial_name(self._trial.number)):
                self._metrics, interval = self._score()
        except SystemExit:  # raised by tune.report if the scheduler stops the trial
            self._end(STOPPED)
            raise
        except Exception as error:
            self._end(FAILED, error=describe_error(error))
            self._trainable.report_failure()
            return
        self._end(FINISHED, interval=interval)
        self._trainable.report(self._metrics, len(self._history) + 1)

    def _end(self, state: str, **changes: object) -> None:
        results = {"metrics": self._metrics, "figures": self._figures, "history": self._history}
        seconds = round(time.perf_counter() - self._began, 3)
        self._trial.write(self._trainable.folder, state=state, seconds=seconds, **results, **changes)

    def _score(self) -> tuple[dict[str, float], float | None]:
        """The trial's objectives, and the interval of its accuracy. Missing artefacts are made."""
        steps = self._run_steps()
        document = steps[-1].directory.read_json("evaluation.json")
        distilled = document["sets"]["distilled"]
        if not self._history:  # the evaluation was complete
            for step, accuracy in mean_curve(distilled["curves"]):
                self._report_accuracy(step, accuracy)
        figures = headline_metrics(document)
        self._figures |= figures
        # recall is undefined for fewer images than neighbours
        metrics = {name: figures.get(metric, math.nan) for name, metric in OBJECTIVES.items()}
        metrics = {name: metric for name, metric in metrics.items() if math.isfinite(metric)}
        if missing := [name for name in self._trainable.sweep.objective if name not in metrics]:
            ipc = document["ipc"]
            raise InputError(f"--objective: {missing[0]} is undefined at IPC {ipc}; choose another")
        return metrics, distilled["last"]["interval"]

    def _run_steps(self) -> list[Step]:
        """The trial's steps, all complete; the pool actor makes those that trials share."""
        folder, values, sweep = self._trainable.folder, self._trial.values, self._trainable.sweep
        context = prepare(sweep.config(values), self._trainable.machine)
        context = replace(context, on_metrics=self._on_metrics)
        own = [step.artifact for step in plan(context, LAST)]
        others = [artifact for artifact in self._trial.artifacts if artifact not in own]
        self._trial = self._trial.write(folder, artifacts=[*others, *own])
        if any(step.manifest is None for step in plan(context, sweep.last_shared)):
            ray.get(self._trainable.pools.make.remote(values))
        sampled = plan(context, "sample")
        seconds = {step.artifact: step.summary["seconds"] for step in sampled}
        pool = sampled[-1].fingerprint if context.config.makes_candidates else None
        self._trial = self._trial.write(folder, pool=pool, upstream=seconds)
        steps = plan(context, LAST)
        for index, step in enumerate(steps):
            steps[index] = step = step if step.manifest else run_step(context, step)
            self._figures |= prefix_metrics(step.stage.name, {"seconds": step.summary["seconds"]})
        return steps

    def _on_metrics(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """A stage's metrics while it runs. Tune receives the accuracy, and may stop the trial here."""
        if CURVE in metrics:
            self._report_accuracy(step, metrics[CURVE])
        elif stage == "select":
            self._figures |= prefix_metrics(stage, metrics)

    def _report_accuracy(self, step: int, accuracy: float) -> None:
        self._history.append((step, accuracy))
        self._metrics = {"accuracy": accuracy}
        self._trainable.report({"accuracy": accuracy, STEP: step}, len(self._history))
