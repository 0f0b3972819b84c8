"""The keeper of what trials share: one actor that numbers them and makes their candidates, a call at a time.

Whatever number of trials ask for the same pool at once, it is made once: the first request makes it while the
others wait, and these find it complete.
"""

import time
from collections.abc import Callable

import ray

from ims3_ray.cluster.resources import Machine
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan, run_step
from ims3_ray.progress import run_name
from ims3_ray.runs.records import FAILED
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .plan import Sweep
from .search_space import Values
from .trial_state import Trial, read_trial, read_trials

# stages of a trial: those up to the first are shared, the report is left out
LAST_SHARED, LAST = "sample", "evaluate"


class Keeper:
    """Answers one call at a time, which is what makes it safe to share. `session` is the driver's."""

    def __init__(self, sweep: Sweep, machine: Machine, folder: Directory, session: str):
        self._sweep, self._machine, self._folder, self._session = sweep, machine, folder, session
        self._made: set[str] = set()
        self._next = 1 + max((trial.number for trial in read_trials(folder)), default=-1)

    def begin(self, values: Values, trial_id: str) -> tuple[Trial, bool]:
        """The trial's record, and whether it is this caller's to run.

        It is not where it is over, failed under this driver already, or runs as another of Tune's trials.
        """
        trial, owner = read_trial(self._folder, values), [self._session, trial_id]
        if trial is None:
            trial, self._next = Trial(self._next, values), self._next + 1
        is_ours = self._session in trial.owner
        if trial.is_over or (is_ours and (trial.state == FAILED or trial.owner != owner)):
            return trial, False
        tag = self._sweep.trial_tag(values)
        begun = Trial(
            trial.number, values, owner=owner, artifacts=trial.artifacts, key=tag, began=time.time()
        )
        return begun.write(self._folder), True

    def make_pool(self, values: Values) -> None:
        """Make the trial's candidates, and whatever they need."""
        with run_name(self._sweep.name):
            self._made |= make_pool(prepare(self._sweep.config(values), self._machine))

    def made(self) -> set[str]:
        """What this actor made, as noun/fingerprint."""
        return self._made


KeeperActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Keeper)


def make_pool(context: Context, say: Callable[[str], None] | None = None) -> set[str]:
    """Make what is missing of the steps up to the candidates; gives what was made, as noun/fingerprint."""
    made = set()
    for step in plan(context, LAST_SHARED):
        if step.manifest is None:
            if say:
                say(f"{step.stage.name} → {step.directory.uri}")
            run_step(context, step)
            made.add(step.artifact)
    return made
