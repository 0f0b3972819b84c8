"""The keeper of what trials share: one actor that numbers them and makes their candidates, one request after
another.

Whatever number of trials ask for the same pool at once, it is made once: the first request makes it while the
others wait, and these find it complete.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from ims3_ray.cluster.machine import Machine
from ims3_ray.pipeline import prepare as preparation
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .plan import Sweep, trial_key
from .records import FAILED, Trial, read_trial, read_trials

# stages of a trial: those up to the first are shared, the report is left out
LAST_SHARED, LAST = "sample", "evaluate"


def steps_of(context: Context, last: str = LAST) -> list[Step]:
    """A trial's steps, in order, up to the stage `last`."""
    steps = plan(context)
    return steps[: [step.stage.name for step in steps].index(last) + 1]


def make_pool(context: Context, say: Callable[[str], None]) -> set[str]:
    """Make what is missing of the steps up to the candidates; gives what was made, as noun/fingerprint."""
    made = set()
    for step in steps_of(context, LAST_SHARED):
        if step.manifest is None:
            say(f"{step.stage.name} → {step.directory.uri}")
            run_step(context, step)
            made.add(f"{step.stage.noun}/{step.fingerprint}")
    return made


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Keeper:
    """Answers one call at a time, which is what makes it safe to share."""

    def __init__(
        self, sweep: Sweep, machine: Machine, folder: Directory, numbers: Mapping[str, int], session: str
    ):
        """`numbers`: of the trials known beforehand, by key; others are numbered as they come."""
        self._sweep, self._machine, self._folder, self._session = sweep, machine, folder, session
        self._numbers, self._made = dict(numbers), set()
        self._next = max([len(self._numbers), *(trial.number + 1 for trial in read_trials(folder))])

    def begin(self, values: Mapping[str, Any], trial_id: str) -> tuple[Trial, bool]:
        """The trial's record, and whether it is this caller's to run.

        It is not where it is over, failed under this driver already, or runs as another of Tune's trials.
        """
        found, owner = read_trial(self._folder, values), [self._session, trial_id]
        if found and (
            found.is_over
            or (found.owner[:1] == owner[:1] and (found.state == FAILED or found.owner != owner))
        ):
            return found, False
        key = trial_key(values)
        if found is None and key not in self._numbers:
            self._numbers[key], self._next = self._next, self._next + 1
        number, held = (found.number, found.artifacts) if found else (self._numbers[key], ())
        begun = Trial(number, values, owner=owner, artifacts=held, key=self._sweep.key_of(values))
        return begun.write(self._folder), True

    def make_pool(self, values: Mapping[str, Any]) -> None:
        """Make the trial's candidates, and whatever they need."""
        self._made |= make_pool(
            preparation.prepare(self._sweep.config(values), self._machine), lambda line: None
        )

    def made(self) -> set[str]:
        """What this actor made, as noun/fingerprint."""
        return self._made


def seconds_of(steps: Sequence[Step]) -> dict[str, float]:
    """Of steps that are complete: artefact → seconds that it took."""
    return {f"{step.stage.noun}/{step.fingerprint}": step.manifest["seconds"] for step in steps}
