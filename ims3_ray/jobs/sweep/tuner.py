"""Ray Tune over the trials: the searcher, early stopping that compares like with like, what calls a trial."""

import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from ims3_ray.evaluation.protocols import get_protocol, get_protocols
from ims3_ray.progress import bar
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.classifiers import remove_local_pixels
from ims3_ray.storage.artifacts import Directory

from .mlflow_callback import Scribe
from .plan import Sweep
from .pool_actor import KeeperActor
from .search_space import Values
from .trainable import LOOK, Runner
from .trial_state import read_trials

# the new one prints boxes whatever it is told; a line a trial is ours
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# a trial reads recipe, images and storage where a person named them
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
CPUS_PER_TRIAL = 0.05  # its work is done by tasks that reserve their own
MAX_FAILURES = 3  # of a trial's process; what a trial raises itself is not tried again


def run_trials(
    sweep: Sweep, points: list[Values] | None, context: Context, folder: Directory, scribe: Scribe
) -> set[str]:
    """Run the trials until each has ended in one way or another; gives the artefacts that their keeper made.

    `points` are their values; None where the searcher chooses.
    """
    machine, one_shard = context.machine, context.machine.workers.model_copy(update={"shards": 1})
    machine = replace(machine, workers=one_shard, runs_at_once=machine.trials)
    keeper: Any = KeeperActor.remote(sweep, machine, folder, uuid.uuid4().hex)
    runner = Runner(sweep, machine, folder, keeper)
    (folder / "tune").delete()
    space = {f: d.tune() for f, d in sweep.space.domains.items()} if points is None else {}
    tuner = tune.Tuner(
        # Tune takes plain functions
        tune.with_resources(lambda drawn: runner(drawn), {"CPU": CPUS_PER_TRIAL}),
        param_space=space if points is None else {"values": tune.grid_search(points)},
        tune_config=tune.TuneConfig(
            num_samples=sweep.trials if points is None else 1,
            search_alg=search_on(sweep, folder) if points is None else None,
            scheduler=_asha(sweep, context) if sweep.asha else None,
            max_concurrent_trials=machine.trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[scribe],
            verbose=0,
        ),
    )
    with bar("sweep", scribe.count, "trials") as scribe.shown:
        tuner.fit()
    scored = get_protocols(context.config.evaluate.protocol, context.config.evaluate.networks)
    remove_local_pixels([context.images[scored[0].split]], {rules.image_size for rules in scored}, machine)
    return ray.get(keeper.made.remote())


def search_on(sweep: Sweep, folder: Directory) -> Searcher:
    """Optuna's TPE over the objectives. Trials that are over come first, and are found: so it goes on."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    over = [sweep.space.encode(trial.values) for trial in read_trials(folder) if trial.is_over]
    several = len(sweep.objective) > 1
    return OptunaSearch(
        metric=list(sweep.objective) if several else sweep.objective[0],
        mode=["max"] * len(sweep.objective) if several else "max",
        points_to_evaluate=over,
        seed=sweep.base.seed + len(over),  # else a sweep that goes on would draw again what it drew first
    )


def _asha(sweep: Sweep, context: Context) -> "ByIPC":
    looks = get_protocol(context.config.evaluate.protocol).evaluations + 1
    options = {"time_attr": LOOK, "metric": "accuracy", "mode": "max", "max_t": looks}
    return ByIPC(lambda trial: sweep.config(sweep.values(trial.config)).ipc, options)


class ByIPC(FIFOScheduler):
    """Successive halving (Li et al. 2020), an ASHA for every number of images a class.

    Among trials of all IPCs, those of small sets would always be stopped.
    """

    def __init__(self, ipc_of: Callable[[TuneTrial], int], options: dict[str, Any]):
        """`options` are ASHAScheduler's."""
        super().__init__()
        self._ipc_of, self._options = ipc_of, options
        self._by_ipc: dict[int, ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._its(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict) -> str:
        return self._its(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict) -> None:
        self._its(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._its(trial).on_trial_remove(tune_controller, trial)

    def _its(self, trial: TuneTrial) -> ASHAScheduler:
        ipc = self._ipc_of(trial)
        if ipc not in self._by_ipc:
            self._by_ipc[ipc] = ASHAScheduler(**self._options)
        return self._by_ipc[ipc]
