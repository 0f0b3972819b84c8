"""Training metrics on their way from workers to the driver, and progress bars that Prometheus reads.

A worker calls `MetricsActor.report`; `receive_metrics` hands each report to a callback in the driver, which
alone updates the bar, the run's record and MLflow.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, cast

import ray
from ray.actor import ActorHandle
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ims3_ray import progress
from ims3_ray.progress import Bar

POLL_S = 0.5
GAUGES = {
    "ims3_rows": "Rows that the running stage has done",
    "ims3_rows_goal": "Rows of the running stage in total; 0 if unknown",
}


class PrometheusBar(Bar):
    """A bar that also exports two gauges, by run and stage: rows done, and rows in total.

    The gauges are 0 after the stage and disappear with the driver; Ray's counters would stay.
    """

    def __init__(self, *, desc: str, unit: str, **options: Any):
        super().__init__(desc=desc, unit=unit, **options)
        self._gauges: dict[str, Gauge] = {}
        if ray.is_initialized() and not self.disable:  # every node's Ray agent exports gauges
            tags = {"run": progress.RUN.get(), "stage": desc, "unit": unit}
            for name, description in GAUGES.items():
                self._gauges[name] = Gauge(name, description, tuple(tags))
                self._gauges[name].set_default_tags(tags)
        self._export(self.n, self.total or 0)

    def update(self, n: float | None = 1) -> bool | None:
        is_displayed = super().update(n)
        self._export(self.n, self.total or 0)
        return is_displayed

    def close(self) -> None:
        self._export(0, 0)
        super().close()

    def _export(self, *values: float) -> None:
        for gauge, value in zip(self._gauges.values(), values, strict=False):
            gauge.set(value)


class Message(TypedDict):
    """A report: the steps done, and the metrics of a log step (else empty)."""

    step: int
    metrics: dict[str, float]


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class MetricsActor:
    """A queue of reports. A restarted actor has lost the reports that were not taken yet."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def report(self, message: Message) -> None:
        self._messages.append(message)

    def take(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages


def start_metrics_actor() -> ActorHandle:
    """Start a MetricsActor on this process's node, so that the loss of another node does not affect it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return cast(ActorHandle, MetricsActor.options(scheduling_strategy=here).remote())


@contextlib.contextmanager
def receive_metrics(actor: ActorHandle, on_message: Callable[[Message], None]) -> Iterator[None]:
    """During the block, a thread calls `on_message` with each report; all have arrived at its end."""
    stop = threading.Event()

    def poll() -> None:
        is_last = False
        while not is_last:
            is_last = stop.wait(POLL_S)
            for message in ray.get(actor.take.remote()):
                on_message(message)

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
