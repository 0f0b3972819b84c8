"""One trial, in a process of its own: the pipeline on changed fields, told to Tune as it goes."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray
from ray import tune
from ray.actor import ActorHandle

from ims3_ray.cluster.resources import Machine
from ims3_ray.errors import InputError, describe_error
from ims3_ray.evaluation.results import CURVE, headline_metrics
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.progress import run_name
from ims3_ray.runs.records import FAILED, FINISHED, STOPPED
from ims3_ray.runs.tags import OBJECTIVES, prefix_metrics
from ims3_ray.storage.artifacts import Directory

from .plan import Sweep
from .pool_actor import LAST, LAST_SHARED
from .trial_state import Trial, read_trial

# Tune's clock: how often the classifiers have been scored, the end of the trial counted as one more
LOOK = "look"
STEP = "step"  # of the classifiers' training
NEVER = 10**9  # looks: beyond any trial, where no scheduler compares
WAIT_S = 0.5


@dataclass(frozen=True)
class Runner:
    """What runs the trials of a sweep: called by Tune with what it drew."""

    sweep: Sweep
    machine: Machine
    folder: Directory
    keeper: ActorHandle

    def __call__(self, drawn: Mapping[str, object]) -> None:
        values = self.sweep.values(drawn)
        trial, is_mine = ray.get(self.keeper.begin.remote(values, tune.get_context().get_trial_id()))
        if is_mine:
            Run(self, trial).run()
            return
        while not trial.is_over and trial.state != FAILED:  # one of equal values runs elsewhere
            time.sleep(WAIT_S)
            trial = read_trial(self.folder, values) or trial
        if trial.state == FAILED:
            self.report_failure()
            return
        for look, (step, accuracy) in enumerate(trial.history, start=1):
            self.report({"accuracy": accuracy, STEP: step}, look)
        self.report(trial.metrics, len(trial.history) + 1)

    def report(self, metrics: Mapping[str, float], look: int) -> None:
        """Tell Tune; what is not known (yet) is NaN, since it asks for every objective in every report."""
        unknown = dict.fromkeys(("accuracy", *self.sweep.objective), math.nan)
        tune.report({**unknown, **metrics, LOOK: look})

    def report_failure(self) -> None:
        """Tell Tune that there is no result. Raising has it try again, which is for processes that died."""
        self.report({}, NEVER)


class Run:
    """A trial that runs: what it has told so far."""

    def __init__(self, runner: Runner, trial: Trial):
        self._runner, self._trial = runner, trial
        self._history: list[tuple[int, float]] = []
        self._metrics: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._began = time.perf_counter()

    def run(self) -> None:
        try:
            with run_name(self._runner.sweep.trial_name(self._trial.number)):
                self._metrics, interval = self._score()
        except SystemExit:  # how Tune ends a trial
            self._end(STOPPED)
            raise
        except Exception as error:
            self._end(FAILED, error=describe_error(error))
            self._runner.report_failure()
            return
        self._end(FINISHED, interval=interval)
        self._runner.report(self._metrics, len(self._history) + 1)

    def _end(self, state: str, **changes: object) -> None:
        known = {"metrics": self._metrics, "figures": self._figures, "history": self._history}
        seconds = round(time.perf_counter() - self._began, 3)
        self._trial.write(self._runner.folder, state=state, seconds=seconds, **known, **changes)

    def _score(self) -> tuple[dict[str, float], float | None]:
        """What of this trial can be an objective, and its accuracy's interval; what is missing is made."""
        steps = self._run_steps()
        document = steps[-1].directory.read_json("evaluation.json")
        distilled = document["sets"]["distilled"]
        if not self._history:  # found complete: told now
            for step, accuracy in mean_curve(distilled["curves"]):
                self._look(step, accuracy)
        figures = headline_metrics(document)
        self._figures |= figures
        # recall needs more images than k
        known = {name: figures.get(of, math.nan) for name, of in OBJECTIVES.items()}
        metrics = {name: figure for name, figure in known.items() if math.isfinite(figure)}
        if missing := [name for name in self._runner.sweep.objective if name not in metrics]:
            raise InputError(
                f"--objective: {missing[0]} is not known of {document['ipc']} images a class; choose another"
            )
        return metrics, distilled["last"]["interval"]

    def _run_steps(self) -> list[Step]:
        """The steps of this trial, all complete; the keeper makes those up to the candidates."""
        folder, values = self._runner.folder, self._trial.values
        context = prepare(self._runner.sweep.config(values), self._runner.machine)
        context = replace(context, on_metrics=self._hear)
        self._trial = self._trial.write(folder, artifacts=[step.artifact for step in plan(context, LAST)])
        if any(step.manifest is None for step in plan(context, LAST_SHARED)):
            ray.get(self._runner.keeper.make_pool.remote(values))
        shared = plan(context, LAST_SHARED)
        seconds = {step.artifact: step.summary["seconds"] for step in shared}
        self._trial = self._trial.write(folder, pool=shared[-1].fingerprint, upstream=seconds)
        steps = plan(context, LAST)
        for place, step in enumerate(steps):
            steps[place] = step = step if step.manifest else run_step(context, step)
            self._figures |= prefix_metrics(step.stage.name, {"seconds": step.summary["seconds"]})
        return steps

    def _hear(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """A stage's metrics while it runs: accuracy goes to Tune, which may end the trial here."""
        if CURVE in metrics:
            self._look(step, metrics[CURVE])
        elif stage == "select":
            self._figures |= prefix_metrics(stage, metrics)

    def _look(self, step: int, accuracy: float) -> None:
        self._history.append((step, accuracy))
        self._metrics = {"accuracy": accuracy}
        self._runner.report({"accuracy": accuracy, STEP: step}, len(self._history))


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """(step, mean accuracy) of the seeds' curves, which share their steps."""
    looks = zip(*curves, strict=True)
    return [(int(of_step[0][0]), sum(value for _, value in of_step) / len(of_step)) for of_step in looks]
