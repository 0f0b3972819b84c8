"""One trial: the pipeline on changed fields, from its selection to its score, told to Tune as it goes."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune

from ims3_ray.cluster.machine import Machine
from ims3_ray.errors import InputError
from ims3_ray.pipeline import prepare as preparation
from ims3_ray.pipeline.steps import Step, run_step
from ims3_ray.runs.tags import name_metrics
from ims3_ray.stages.evaluate.stage import CURVE, headline
from ims3_ray.storage.artifacts import Directory
from ims3_ray.text import one_line, redacted

from .keeper import LAST_SHARED, seconds_of, steps_of
from .plan import OBJECTIVES, Sweep
from .records import FAILED, FINISHED, STOPPED, Trial, read_trial

# Tune's clock: how often the classifiers have been scored, the end of the trial counted as one more
LOOK = "look"
STEP = "step"  # of the classifiers' training
NEVER = 10**9  # looks: beyond any trial, where no scheduler compares
WAIT_S = 0.5
LONGEST_ERROR = 500  # characters


@dataclass(frozen=True)
class Runner:
    """What runs the trials of a sweep: given to Tune, called with the values that it chose."""

    sweep: Sweep
    machine: Machine
    folder: Directory
    keeper: "ray.actor.ActorHandle"

    def __call__(self, drawn: Mapping[str, Any]) -> None:
        values = self.sweep.values(drawn)
        trial, is_mine = ray.get(self.keeper.begin.remote(values, tune.get_context().get_trial_id()))
        if is_mine:
            Run(self, trial).run()
            return
        trial = self._wait(trial)
        if trial.state == FAILED:
            self.report_failure()
            return
        for look, (step, accuracy) in enumerate(trial.history, start=1):
            self.report({"accuracy": accuracy, STEP: step}, look)
        self.report(trial.metrics, len(trial.history) + 1)

    def report(self, metrics: Mapping[str, float], look: int) -> None:
        """Tell Tune; what is not known (yet) is NaN, since it asks for every objective in every report."""
        tune.report({**dict.fromkeys(("accuracy", *self.sweep.objective), math.nan), **metrics, LOOK: look})

    def report_failure(self) -> None:
        """Tell Tune that there is no result; raising would have it try again, which is for processes that
        died.
        """
        self.report({}, NEVER)

    def _wait(self, trial: Trial) -> Trial:
        """The trial with equal values that runs elsewhere, once it is over."""
        while not trial.is_over and trial.state != FAILED:
            time.sleep(WAIT_S)
            trial = read_trial(self.folder, trial.values)
        return trial


class Run:
    """A trial that runs: what it has told so far."""

    def __init__(self, runner: Runner, trial: Trial):
        self._runner, self._trial = runner, trial
        self._history: list[tuple[int, float]] = []
        self._known: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._began = time.perf_counter()

    def run(self) -> None:
        try:
            self._known, interval = self._score()
        except SystemExit:  # how Tune ends a trial
            self._end(STOPPED)
            raise
        except Exception as error:
            line = one_line(redacted(f"{type(error).__name__}: {error}"))[:LONGEST_ERROR]
            self._end(FAILED, error=line)
            self._runner.report_failure()
            return
        self._end(FINISHED, interval=interval)
        self._runner.report(self._known, len(self._history) + 1)

    def _end(self, state: str, **found: Any) -> None:
        self._trial.write(
            self._runner.folder,
            state=state,
            metrics=self._known,
            figures=self._figures,
            history=self._history,
            seconds=round(time.perf_counter() - self._began, 3),
            **found,
        )

    def _score(self) -> tuple[dict[str, float], float | None]:
        """The figures of this trial that can be objectives, and the interval of its accuracy; what is missing
        is made.
        """
        steps = self._steps()
        for number, step in enumerate(steps):
            if step.manifest is None:
                steps[number] = run_step(self._context, step)
            self._figures |= name_metrics(step.stage.name, {"seconds": steps[number].manifest["seconds"]})
        document = steps[-1].directory.read_json("evaluation.json")
        if not self._history:  # found complete: told now
            for look in _mean_curve(document["sets"]["distilled"]["curves"]):
                self._look(*look)
        figures = headline(document)
        self._figures |= figures
        # recall needs more images than k
        known = {name: figures[of] for name, of in OBJECTIVES.items() if of in figures}
        if missing := [name for name in self._runner.sweep.objective if name not in known]:
            raise InputError(
                f"--objective: {missing[0]} is not known of {document['ipc']} images a class; choose another"
            )
        return known, document["sets"]["distilled"]["last"]["interval"]

    def _steps(self) -> list[Step]:
        """The steps of this trial, those up to the candidates made, and a record of what they are."""
        runner, values = self._runner, self._trial.values
        config = runner.sweep.config(values)
        context = preparation.prepare(config, runner.machine)
        self._context = replace(context, on_metrics=self._hear)
        needed = [f"{step.stage.noun}/{step.fingerprint}" for step in steps_of(context)]
        self._trial = self._trial.write(runner.folder, artifacts=needed)
        if any(step.manifest is None for step in steps_of(context, LAST_SHARED)):
            ray.get(runner.keeper.make_pool.remote(values))
        shared = steps_of(context, LAST_SHARED)
        self._trial = self._trial.write(
            runner.folder, pool=shared[-1].fingerprint, upstream=seconds_of(shared)
        )
        return steps_of(context)

    def _hear(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """A stage's metrics while it runs: the classifiers' accuracy goes to Tune, which may end the trial
        here.
        """
        if CURVE in metrics:
            self._look(step, metrics[CURVE])
        elif stage == "select":
            self._figures |= name_metrics(stage, metrics)

    def _look(self, step: int, accuracy: float) -> None:
        self._history.append((step, accuracy))
        self._known = {"accuracy": accuracy}
        self._runner.report({"accuracy": accuracy, STEP: step}, len(self._history))


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[int, float]]:
    """(step, mean accuracy) of the seeds' curves, which share their steps."""
    return [
        (int(looks[0][0]), sum(value for _, value in looks) / len(looks))
        for looks in zip(*curves, strict=True)
    ]
