"""What workers tell the driver, and the driver Prometheus, while stages run."""

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
    "ims3_rows": "Rows that the stage at work has done",
    "ims3_rows_goal": "Rows that it will have done; 0 where that is not known",
}


class PrometheusBar(Bar):
    """A bar that Prometheus sees as well, where there is a cluster: rows done and to do, by run and stage.

    Gauges, which end with the driver, as Ray's counters do not; 0 once the stage is over.
    """

    def __init__(self, *, desc: str, unit: str, **options: Any):
        super().__init__(desc=desc, unit=unit, **options)
        self._gauges: dict[str, Gauge] = {}
        if ray.is_initialized() and not self.disable:  # through Ray's agent, which every node has
            tags = {"run": progress.RUN.get(), "stage": desc, "unit": unit}
            for name, description in GAUGES.items():
                self._gauges[name] = Gauge(name, description, tuple(tags))
                self._gauges[name].set_default_tags(tags)
        self._export(self.n, self.total or 0)

    def update(self, n: float | None = 1) -> bool | None:
        is_shown = super().update(n)
        self._export(self.n, self.total or 0)
        return is_shown

    def close(self) -> None:
        self._export(0, 0)
        super().close()

    def _export(self, *figures: float) -> None:
        for gauge, figure in zip(self._gauges.values(), figures, strict=False):
            gauge.set(figure)


class Message(TypedDict):
    """What a training posts: the steps done, and metrics where the last one was a log step."""

    step: int
    metrics: dict[str, float]


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class MetricsActor:
    """Where Train workers leave their metrics and the driver, the only one to write to MLflow, picks them up.

    One that is started again has forgotten what was not picked up yet.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def post(self, message: Message) -> None:
        self._messages.append(message)

    def take(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages


def start_metrics_actor() -> ActorHandle:
    """A Board on this process's own node, which no other node's loss takes away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return cast(ActorHandle, MetricsActor.options(scheduling_strategy=here).remote())


@contextlib.contextmanager
def receive_metrics(board: ActorHandle, receive: Callable[[Message], None]) -> Iterator[None]:
    """Hand every message posted to `board` to `receive`, in a thread, until the block ends."""
    stop = threading.Event()

    def poll() -> None:
        last = False
        while not last:
            last = stop.wait(POLL_S)
            for message in ray.get(board.take.remote()):
                receive(message)

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
