"""What the driver says of a sweep while it runs: a line for every trial that ends, and its run of MLflow.

The driver alone writes to MLflow: it knows the server and how to log in there, which workers need not. A
trial's record has all that its run holds, so that a driver that goes on adds what another that died had not
written yet.
"""

# ruff: noqa: ARG002 (the signatures are Tune's)

from collections.abc import Callable, Sequence
from typing import Any

import yaml
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from ims3_ray.evaluation.results import CURVE
from ims3_ray.progress import Bar
from ims3_ray.runs import tags
from ims3_ray.runs.mlflow_tracker import RECIPE_FILE, Tracker
from ims3_ray.runs.records import FAILED, FINISHED, RUNNING, STOPPED, UNENDED
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .plan import Sweep, as_words
from .trainable import STEP
from .trial_state import Trial, read_trial, read_trials

STATUS = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}  # as MLflow has it


class Scribe(tune.Callback):
    """Hears Tune in the driver. `context` is any trial's, `parent` MLflow's run of the sweep.

    `found` has the keys of the trials that were over when it began.
    """

    def __init__(
        self,
        sweep: Sweep,
        context: Context,
        folder: Directory,
        count: int,
        parent: str | None,
        say: Callable[[str], None],
    ):
        self._sweep, self._context, self._folder = sweep, context, folder
        self._parent, self._say, self.count, self._ended = parent, say, count, 0
        self.shown: Bar | None = None  # of its trials
        self._runs: dict[str, Tracker] = {}
        self._at_work: set[str] = set()
        self.found = {trial.key for trial in read_trials(folder) if trial.is_over}

    def __getstate__(self) -> dict[str, object]:
        """Tune keeps its callbacks with the experiment, but no connections."""
        return self.__dict__ | {"_say": None, "_runs": {}, "shown": None}

    def on_trial_start(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        record = read_trial(self._folder, self._sweep.values(trial.config))
        if record and not record.is_over:
            self._run_of(record).resume()
            self._at_work.add(record.key)

    def on_trial_result(
        self, iteration: int, trials: list, trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        record = read_trial(self._folder, self._sweep.values(trial.config))
        if result.get(STEP) and record and record.state == RUNNING:
            self._run_of(record).log(result[STEP], {f"evaluate/{CURVE}": result["accuracy"]})

    def on_trial_complete(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        self._end(self._record(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        record = self._record(trial)
        if record.state in UNENDED:  # it never came to say so itself
            error = "the trial's process died, and again whenever it was started anew"
            record = record.write(self._folder, state=FAILED, error=error)
        self._end(record)

    def stop(self) -> None:
        """Close the runs of trials that were at work when the sweep was stopped."""
        for key in self._at_work:
            self._runs[key].finish("KILLED", patient=False)

    def write_up(self, records: Sequence[Trial]) -> list[Trial]:
        """The records with their MLflow runs' ids, every run written as far as the server is there."""
        identified, patient = [], True
        for record in records:
            patient = self._write_run(record, patient=patient)  # one that stays away is waited for once
            run_id = self._run_of(record).run_id
            identified.append(record.write(self._folder, mlflow_run_id=run_id))
        return identified

    def _write_run(self, record: Trial, *, patient: bool = False) -> bool:
        """Bring MLflow's run of a trial that has ended up to its record; whether all is written."""
        run = self._run_of(record)
        if run.is_finished or record.state in UNENDED:
            return True
        for step, accuracy in record.history:
            run.log(int(step), {f"evaluate/{CURVE}": accuracy})
        run.log(0, dict(record.figures))
        if record.error:
            run.tag(tags.ERROR, record.error)
        return run.finish(STATUS[record.state], patient=patient, ended=record.ended)

    def _record(self, trial: TuneTrial) -> Trial:
        values = self._sweep.values(trial.config)
        record = read_trial(self._folder, values)
        return record or Trial(self._ended, values, key=self._sweep.trial_tag(values))

    def _run_of(self, record: Trial) -> Tracker:
        if record.key not in self._runs:
            sweep, number = self._sweep, record.number
            of_trial = {tags.KIND: tags.TRIAL, tags.SWEEP_KEY: sweep.key, tags.TRIAL_NUMBER: str(number)}
            own = tags.run_tags(self._context) | of_trial | tags.artifact_tags(record.artifacts)
            run = self._runs[record.key] = Tracker(self._context.storage, self._say)
            name, params = sweep.trial_name(number), sweep.trial_params(record.values)
            run.start(record.key, name, params, own, parent=self._parent, began=record.began)
            if not run.is_finished:
                recipe = sweep.config(record.values).results()
                run.log_file(RECIPE_FILE, yaml.safe_dump(recipe, sort_keys=False).encode())
        return self._runs[record.key]

    def _end(self, record: Trial) -> None:
        self._ended += 1
        if self.shown is not None:
            self.shown.update()
        self._at_work.discard(record.key)
        self._write_run(record)
        outcome, metrics = record.error or record.state, record.metrics
        if metrics and not record.error:
            known = [name for name in self._sweep.objective if name in metrics]
            figures = ", ".join(f"{name} {100 * metrics[name]:.2f} %" for name in known)
            outcome = figures if record.state == FINISHED else f"{record.state} at {figures}"
        took = "found complete" if record.key in self.found else f"{record.seconds or 0:.0f} s"
        self._say(f"[{self._ended}/{self.count}] {as_words(record.values)}: {outcome} ({took})")
