"""The driver's report on a sweep while it runs: a line per ended trial, and the trial's MLflow run.

Only the driver needs MLflow credentials. A trial's record holds all that its MLflow run does, so that a
resumed driver adds what a killed one had not written.
"""

# ruff: noqa: ARG002 (the signatures are Tune's)

from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from ims3_ray.evaluation.results import CURVE
from ims3_ray.progress import Bar
from ims3_ray.runs import tags
from ims3_ray.runs.mlflow_tracker import Tracker
from ims3_ray.runs.records import FAILED, FINISHED, RUNNING, STATUS, UNENDED
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .page import metric_text
from .plan import Sweep, as_words
from .trial import STEP, Trial, next_number, read_trial, read_trials


class MlflowCallback(tune.Callback):
    """Tune's callback in the driver. `context` is any trial's, `parent` the MLflow id of the sweep's run."""

    def __init__(
        self,
        sweep: Sweep,
        context: Context,
        folder: Directory,
        count: int,
        parent: str | None,
        print_line: Callable[[str], None],
    ):
        self._sweep, self._context, self._folder = sweep, context, folder
        self._parent, self._print_line, self.count, self._ended = parent, print_line, count, 0
        self.bar: Bar | None = None
        self._runs: dict[str, Tracker] = {}
        self._running: set[str] = set()  # keys
        self.found = {trial.key for trial in read_trials(folder) if trial.is_over}  # over before the start

    def __getstate__(self) -> dict[str, object]:
        """Tune pickles its callbacks with the experiment; connections stay behind."""
        return self.__dict__ | {"_print_line": None, "_runs": {}, "bar": None}

    def on_trial_start(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        record = self._record(trial)
        if record and not record.is_over:
            self._run_of(record).resume()
            self._running.add(record.key)

    def on_trial_result(
        self, iteration: int, trials: list, trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        record = self._record(trial)
        if result.get(STEP) and record and record.state == RUNNING:
            self._run_of(record).log(result[STEP], {f"evaluate/{CURVE}": result["accuracy"]})
            self._running.add(record.key)

    def on_trial_complete(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        self._end(self._record(trial) or self._new_record(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: TuneTrial, **info: Any) -> None:
        record = self._record(trial) or self._new_record(trial)
        if record.state in UNENDED:  # its process could not write that it failed
            error = "the trial's process died, and again whenever it was started anew"
            record = record.write(self._folder, state=FAILED, error=error)
        self._end(record)

    def stop(self) -> None:
        """Close the MLflow runs of the trials at work when the sweep is stopped."""
        for key in self._running:
            self._runs[key].finish("KILLED", patient=False)

    def write_runs(self, records: Sequence[Trial]) -> list[Trial]:
        """Write every trial's MLflow run, as far as the server answers; returns the records with run ids."""
        identified, patient = [], True
        for record in records:
            patient = self._write_run(record, patient=patient)  # wait once for a server that is away
            run_id = self._run_of(record).run_id
            identified.append(record.write(self._folder, mlflow_run_id=run_id))
        return identified

    def _write_run(self, record: Trial, *, patient: bool = False) -> bool:
        """Complete the MLflow run of an ended trial from its record; returns whether all is written."""
        run = self._run_of(record)
        if run.is_finished or record.state in UNENDED:
            return True
        for step, accuracy in record.history:
            run.log(int(step), {f"evaluate/{CURVE}": accuracy})
        run.log(0, dict(record.figures))
        if record.error:
            run.tag(tags.ERROR, record.error)
        return run.finish(STATUS[record.state], patient=patient, ended=record.ended)

    def _record(self, trial: TuneTrial) -> Trial | None:
        return read_trial(self._folder, self._sweep.space.decode(trial.config))

    def _new_record(self, trial: TuneTrial) -> Trial:
        values = self._sweep.space.decode(trial.config)
        return Trial(next_number(self._folder), values, key=self._sweep.trial_tag(values))

    def _run_of(self, record: Trial) -> Tracker:
        if record.key not in self._runs:
            sweep, number = self._sweep, record.number
            own = {tags.KIND: tags.TRIAL, tags.SWEEP_KEY: sweep.key, tags.TRIAL_NUMBER: str(number)}
            own = tags.run_tags(self._context) | own | tags.artifact_tags(record.artifacts)
            run = self._runs[record.key] = Tracker(self._context.storage, self._print_line)
            name, params = sweep.trial_name(number), sweep.trial_params(record.values)
            run.start(record.key, name, params, own, parent=self._parent, began=record.began)
            if not run.is_finished:
                run.log_recipe(sweep.config(record.values).results())
        return self._runs[record.key]

    def _end(self, record: Trial) -> None:
        self._ended += 1
        if self.bar is not None:
            self.bar.update()
        self._running.discard(record.key)
        self._write_run(record)
        outcome = record.error or record.state
        if record.metrics and not record.error:
            scores = ", ".join(f"{name} {metric_text(record, name)}" for name in self._sweep.objective)
            outcome = scores if record.state == FINISHED else f"{record.state} at {scores}"
        took = "found complete" if record.key in self.found else f"{record.seconds or 0:.0f} s"
        self._print_line(f"[{self._ended}/{self.count}] {as_words(record.values)}: {outcome} ({took})")
