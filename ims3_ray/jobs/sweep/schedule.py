"""Early stopping that compares like with like: an ASHA for every number of images a class."""

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler


class ByIPC(FIFOScheduler):
    """Successive halving (Li et al. 2020) among trials of one IPC: among all, those of small sets would
    always be stopped.
    """

    def __init__(self, ipc_of: Callable[[Any], int], options: dict[str, Any]):
        """`options` are ASHAScheduler's; `ipc_of` gives the IPC of one of Tune's trials."""
        super().__init__()
        self._ipc_of, self._options = ipc_of, options
        self._metric, self._mode = options["metric"], options["mode"]
        self._of: dict[int, ASHAScheduler] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return metric is None and mode is None

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        self._its(trial).on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict) -> str:
        return self._its(trial).on_trial_result(controller, trial, result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict) -> None:
        self._its(trial).on_trial_complete(controller, trial, result)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        self._its(trial).on_trial_remove(controller, trial)

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        self._its(trial).on_trial_error(controller, trial)

    def debug_string(self) -> str:
        return "; ".join(
            f"ipc {ipc}: {scheduler.debug_string()}" for ipc, scheduler in sorted(self._of.items())
        )

    def _its(self, trial: Any) -> ASHAScheduler:
        ipc = self._ipc_of(trial)
        if ipc not in self._of:
            self._of[ipc] = ASHAScheduler(**self._options)
        return self._of[ipc]
