"""One trial: the pipeline on changed fields, from its selection to its score, told to Tune and to MLflow as it goes."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune

from .. import preparation
from ..artifacts import Directory
from ..cluster import Machine
from ..distillation import under
from ..errors import InputError
from ..pipeline import run_step
from ..stages.evaluate import CURVE, headline
from ..tracking import Tracker
from .keeper import LAST_SHARED, shared, steps_of
from .plan import OBJECTIVES, Sweep, say, trial_key
from .records import FAILED, FINISHED, STOPPED, Record, read_record

LOOK = "look"  # Tune's clock: how often the classifiers have been scored, the end of the trial counted as one more
NEVER = 10**9  # looks: beyond any trial, where no scheduler compares
WAIT_S = 0.5


@dataclass(frozen=True)
class Trial:
    """What runs the trials of a sweep: given to Tune, called with the values that it chose."""

    sweep: Sweep
    machine: Machine
    storage: Directory
    folder: Directory
    keeper: "ray.actor.ActorHandle"
    parent: str | None  # MLflow's run of the sweep

    def run(self, drawn: Mapping[str, Any]) -> None:
        values = self.sweep.values(drawn)
        record, is_mine = ray.get(self.keeper.begin.remote(values, tune.get_context().get_trial_id()))
        if not is_mine:
            record = self._wait(record)
            if record.status == FAILED:
                self.report_failure()
                return
            for look, (_, accuracy) in enumerate(record.history, start=1):
                self.report({"accuracy": accuracy}, look)
            self.report(record.metrics, len(record.history) + 1)
            return
        Run(self, record).run()

    def report(self, metrics: Mapping[str, float], look: int) -> None:
        """Tell Tune; what is not known (yet) is NaN, since it asks for every objective in every report."""
        tune.report({**dict.fromkeys(("accuracy", *self.sweep.objective), math.nan), **metrics, LOOK: look})

    def report_failure(self) -> None:
        """Tell Tune that there is no result; raising would have it try again, which is for processes that died."""
        self.report({}, NEVER)

    def _wait(self, record: Record) -> Record:
        """The record of the trial with equal values that runs elsewhere, once it is over."""
        while not record.is_over and record.status != FAILED:
            time.sleep(WAIT_S)
            record = read_record(self.folder, record.values)
        return record


class Run:
    """A trial that runs: what it has told so far."""

    def __init__(self, trial: Trial, record: Record):
        self._trial, self._record = trial, record
        self._history: list[tuple[int, float]] = []
        self._known: dict[str, float] = {}
        self._began = time.perf_counter()
        self._tracker = Tracker(trial.storage, print)

    def run(self) -> None:
        folder = self._trial.folder
        try:
            figures, interval = self._score()
        except SystemExit:  # how Tune ends a trial
            self._tracker.log(len(self._history), {"stopped_early": 1.0})
            self._tracker.finish("KILLED")
            self._record.end(folder, STOPPED, **self._so_far())
            raise
        except Exception as error:
            self._tracker.tag("error", _one_line(error))
            self._tracker.finish("FAILED")
            self._record.end(folder, FAILED, error=_one_line(error), **self._so_far())
            self._trial.report_failure()
            return
        self._tracker.finish("FINISHED")
        self._known = figures
        self._record.end(folder, FINISHED, interval=interval, **self._so_far())
        self._trial.report(figures, len(self._history) + 1)

    def _score(self) -> tuple[dict[str, float], float | None]:
        """Headline figures of this trial, and the interval of its accuracy; what is missing is made."""
        trial, record = self._trial, self._record
        config = trial.sweep.config(record.values)
        self._track(config.results())
        context = preparation.prepare(config, trial.machine)
        if any(step.manifest is None for step in steps_of(context, LAST_SHARED)):
            ray.get(trial.keeper.make_pool.remote(record.values))
        context = replace(context, on_metrics=self._hear)
        steps = steps_of(context)
        self._record = record = replace(
            record,
            pool=next(step.fingerprint for step in steps if step.stage.name == LAST_SHARED),
            upstream=shared([step for step in steps if step.manifest and step.stage.name in _UPSTREAM]),
            artifacts=[f"{step.stage.noun}/{step.fingerprint}" for step in steps],
            mlflow_run_id=self._tracker.run_id,
        ).write(trial.folder)
        for number, step in enumerate(steps):
            if step.manifest is None:
                steps[number] = run_step(context, step)
            self._tracker.log(0, under(step.stage.name, {"seconds": steps[number].manifest["seconds"]}))
        document = steps[-1].directory.read_json("evaluation.json")
        if not self._history:  # found complete: told now
            for look in _mean_curve(document["sets"]["distilled"]["curves"]):
                self._look(*look)
        figures = headline(document)
        self._tracker.log(0, figures)
        unknown = [name for name in trial.sweep.objective if OBJECTIVES[name] not in figures]
        if unknown:
            raise InputError(f"--objective: {unknown[0]} is not known of {config.ipc} images a class; choose another")
        known = {name: figures[of] for name, of in OBJECTIVES.items() if of in figures}  # recall needs more images than k
        return known, document["sets"]["distilled"]["last"]["interval"]

    def _track(self, params: Mapping[str, Any]) -> None:
        sweep, values = self._trial.sweep, self._record.values
        tags = {"kind": "trial", "sweep": sweep.key, "trial": str(self._record.number)}
        name = f"{sweep.base.recipe}-{sweep.key}-{self._record.number:03d}"
        self._tracker.start(
            f"{sweep.key}-{trial_key(values)}", name, params, tags | {"values": say(values)[:5000]}, parent=self._trial.parent
        )

    def _hear(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """A stage's metrics while it runs: the classifiers' accuracy goes to Tune, which may end the trial here."""
        if CURVE in metrics:
            self._look(step, metrics[CURVE])
        else:
            self._tracker.log(step, under(stage, metrics))

    def _look(self, step: int, accuracy: float) -> None:
        self._history.append((step, accuracy))
        self._known = {"accuracy": accuracy}
        self._tracker.log(step, {f"evaluate/{CURVE}": accuracy})
        self._trial.report({"accuracy": accuracy}, len(self._history))

    def _so_far(self) -> dict[str, Any]:
        return {
            "metrics": self._known,
            "history": self._history,
            "seconds": round(time.perf_counter() - self._began, 3),
            "mlflow_run_id": self._tracker.run_id,
        }


_UPSTREAM = ("encode", "invert", "finetune", "embed", "sample")


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[int, float]]:
    """(step, mean accuracy) of the seeds' curves, which share their steps."""
    return [(int(looks[0][0]), sum(value for _, value in looks) / len(looks)) for looks in zip(*curves, strict=True)]


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
