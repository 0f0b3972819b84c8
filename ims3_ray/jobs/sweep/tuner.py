"""Ray Tune over the trials: search algorithm, scheduler, and the actor that makes what trials share."""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher

from ims3_ray.cluster.resources import Machine
from ims3_ray.evaluation.protocols import get_protocol, get_protocols
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan, run_step
from ims3_ray.progress import bar, run_name
from ims3_ray.runs.records import FAILED
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.classifiers import remove_local_pixels
from ims3_ray.storage.artifacts import Directory

from .mlflow_callback import MlflowCallback
from .plan import Sweep
from .search_space import Values
from .trial import EVAL, Trainable, Trial, next_number, read_trial, read_trials

# Tune's newer output prints boxes at any verbosity; the callback prints a line per trial
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# recipe, images and storage may be paths relative to the working directory
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
# Tune's own handler ends the loop as if the sweep were complete; the driver stops by KeyboardInterrupt
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
CPUS_PER_TRIAL = 0.05  # the trial's work is done by tasks that reserve their own
MAX_FAILURES = 3  # deaths of a trial's process; an exception in a trial is not tried again


def run_trials(sweep: Sweep, context: Context, folder: Directory, callback: MlflowCallback) -> None:
    """Run all trials with Tune until each has ended. `context` is any trial's."""
    machine, one_shard = context.machine, context.machine.workers.model_copy(update={"shards": 1})
    machine = replace(machine, workers=one_shard, runs_at_once=machine.trials)
    pools: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(PoolActor)
    trainable = Trainable(sweep, machine, folder, pools.remote(sweep, machine, folder, uuid.uuid4().hex))
    (folder / "tune").delete()
    is_grid = sweep.search == "grid"
    tuner = tune.Tuner(
        # Tune takes plain functions only
        tune.with_resources(lambda config: trainable(config), {"CPU": CPUS_PER_TRIAL}),
        param_space=sweep.space.tune(is_grid=is_grid),
        tune_config=tune.TuneConfig(
            num_samples=1 if is_grid else sweep.trials,
            search_alg=search_algorithm(sweep, folder, machine.trials),
            scheduler=_asha(sweep, context) if sweep.asha else None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[callback],
            verbose=0,
        ),
    )
    with bar("sweep", callback.count, "trials") as callback.bar:
        tuner.fit()
    scored = get_protocols(context.config.evaluate.protocol, context.config.evaluate.networks)
    remove_local_pixels([context.images[scored[0].split]], {rules.image_size for rules in scored}, machine)


def search_algorithm(sweep: Sweep, folder: Directory, max_concurrent: int) -> SearchAlgorithm | Searcher:
    """Tune's BasicVariantGenerator for grid and random; Optuna's TPE over the objectives for bayes.

    Optuna first receives the values of an earlier driver's trials: those that are over report their records.
    """
    if sweep.search != "bayes":
        rng = np.random.default_rng(sweep.base.seed)  # as Space.points
        return BasicVariantGenerator(max_concurrent=max_concurrent, random_state=rng)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = [sweep.space.encode(trial.values) for trial in read_trials(folder)]
    several = len(sweep.objective) > 1
    search = OptunaSearch(
        metric=list(sweep.objective) if several else sweep.objective[0],
        mode=["max"] * len(sweep.objective) if several else "max",
        points_to_evaluate=known,
        seed=sweep.base.seed + len(known),  # else a resumed sweep would draw its first values again
    )
    return ConcurrencyLimiter(search, max_concurrent)


def _asha(sweep: Sweep, context: Context) -> "AshaByIpc":
    evaluations = get_protocol(context.config.evaluate.protocol).evaluations + 1
    options = {"time_attr": EVAL, "metric": "accuracy", "mode": "max", "max_t": evaluations}
    return AshaByIpc(lambda trial: sweep.config(sweep.space.decode(trial.config)).ipc, options)


class AshaByIpc(FIFOScheduler):
    """An ASHAScheduler (Li et al. 2020) per number of images per class.

    Among trials of all IPCs, ASHA would always stop the small sets.
    """

    def __init__(self, ipc_of: Callable[[TuneTrial], int], options: dict[str, Any]):
        """`options` are ASHAScheduler's."""
        super().__init__()
        self._ipc_of, self._options = ipc_of, options
        self._by_ipc: dict[int, ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._scheduler(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict) -> str:
        return self._scheduler(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict) -> None:
        self._scheduler(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._scheduler(trial).on_trial_remove(tune_controller, trial)

    def _scheduler(self, trial: TuneTrial) -> ASHAScheduler:
        ipc = self._ipc_of(trial)
        if ipc not in self._by_ipc:
            self._by_ipc[ipc] = ASHAScheduler(**self._options)
        return self._by_ipc[ipc]


class PoolActor:
    """Numbers the trials and makes the artefacts that they share, one call at a time.

    Trials that need the same candidates at once wait for the first one's call. `session` is the driver's.
    """

    def __init__(self, sweep: Sweep, machine: Machine, folder: Directory, session: str):
        self._sweep, self._machine, self._folder, self._session = sweep, machine, folder, session

    def claim(self, values: Values, trial_id: str) -> tuple[Trial, bool]:
        """The trial's record, and whether the caller runs it.

        It does not if the trial is over, failed under this driver, or runs as another trial of Tune.
        """
        trial, owner = read_trial(self._folder, values), [self._session, trial_id]
        if trial is None:
            trial = Trial(next_number(self._folder), values)
        is_ours = self._session in trial.owner
        if trial.is_over or (is_ours and (trial.state == FAILED or trial.owner != owner)):
            return trial, False
        begun = Trial(trial.number, values, owner=owner, artifacts=trial.artifacts, began=time.time())
        return begun.write(self._folder, key=self._sweep.trial_tag(values)), True

    def make(self, values: Values) -> None:
        """Make what trials share of this trial's artefacts."""
        with run_name(self._sweep.name):
            context = prepare(self._sweep.config(values), self._machine)
            for step in plan(context, self._sweep.last_shared):
                if step.manifest is None:
                    run_step(context, step)
