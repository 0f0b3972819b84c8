"""What the driver says of a sweep while it runs: a line for every trial that ends, and a run of MLflow for
each.

The driver alone writes to MLflow: it knows the server and how to log in there, which workers need not. A
trial's record has all that its run holds, so that a driver that goes on adds what another that died had not
written yet.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from ims3_ray.runs import tags
from ims3_ray.runs.tracking import Tracker
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.stage import CURVE
from ims3_ray.storage.artifacts import Directory

from .plan import Sweep, say
from .records import FAILED, FINISHED, RUNNING, STOPPED, Trial, read_trial
from .trial import STEP

STATUS = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}  # as MLflow has it


class Scribe(tune.Callback):
    """Hears Tune in the driver."""

    def __init__(
        self,
        sweep: Sweep,
        context: Context,
        folder: Directory,
        count: int,
        parent: str | None,
        told: Callable[[str], None],
    ):
        """`context`: of any trial. `parent`: MLflow's run of the sweep."""
        self._sweep, self._context, self._folder, self._count, self._told = (
            sweep,
            context,
            folder,
            count,
            told,
        )
        self._parent, self._ended = parent, 0
        self._runs: dict[str, Tracker] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps its callbacks with the experiment; connections and where to speak to are nothing to
        keep.
        """
        return self.__dict__ | {"_told": None, "_runs": {}}

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = read_trial(self._folder, self._sweep.values(trial.config))
        if result.get(STEP) and record and record.state == RUNNING:
            self._run_of(record).log(result[STEP], {f"evaluate/{CURVE}": result["accuracy"]})

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._end(self._record(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        record = self._record(trial)
        if record.state == RUNNING:  # it never came to say so itself
            what = "the trial's process died, and again whenever it was started anew"
            record = record.write(self._folder, state=FAILED, error=what)
        self._end(record)

    def write_up(self, record: Trial, *, patient: bool = False) -> tuple[str | None, bool]:
        """Bring MLflow's run of a trial that has ended up to its record; gives the run's id, and whether all
        is written.
        """
        run = self._run_of(record)
        if run.is_finished or record.state == RUNNING:
            return run.run_id, True
        for step, accuracy in record.history:
            run.log(int(step), {f"evaluate/{CURVE}": accuracy})
        run.log(0, dict(record.figures))
        if record.error:
            run.tag("error", record.error)
        written = run.finish(STATUS[record.state], patient=patient)
        return run.run_id, written

    def write_up_all(self, records: Sequence[Trial]) -> list[Trial]:
        """The records with their MLflow runs' ids, every run written as far as the server is there."""
        told, patient = [], True
        for record in records:
            run_id, patient = self.write_up(record, patient=patient)  # one that stays away is waited for once
            told.append(record.write(self._folder, mlflow_run_id=run_id))
        return told

    def _record(self, trial: Any) -> Trial:
        values = self._sweep.values(trial.config)
        return read_trial(self._folder, values) or Trial(self._ended, values, key=self._sweep.key_of(values))

    def _run_of(self, record: Trial) -> Tracker:
        if record.key not in self._runs:
            config, name = (
                self._sweep.config(record.values),
                f"{self._context.config.recipe}-{self._sweep.key}",
            )
            told = tags.describe_run(self._context) | {
                tags.KIND: tags.TRIAL,
                "sweep": self._sweep.key,
                "trial": str(record.number),
            }
            told |= tags.tag_artifacts(record.artifacts)
            run = self._runs[record.key] = Tracker(self._context.storage, self._told)
            run.start(record.key, f"{name}-{record.number:03d}", config.results(), told, parent=self._parent)
        return self._runs[record.key]

    def _end(self, record: Trial) -> None:
        self._ended += 1
        self.write_up(record)
        what, metrics = record.error or record.state, record.metrics
        if metrics and not record.error:
            heard = [name for name in self._sweep.objective if name in metrics]
            figures = ", ".join(f"{name} {100 * metrics[name]:.2f} %" for name in heard)
            what = figures if record.state == FINISHED else f"{record.state} at {figures}"
        self._told(
            f"[{self._ended}/{self._count}] {say(record.values)}: {what} ({record.seconds or 0:.0f} s)"
        )
