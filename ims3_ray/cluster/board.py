"""What workers tell the driver, and the driver Prometheus, while stages run."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, cast

import ray
from ray.actor import ActorHandle
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

POLL_S = 0.5


class CountedBar(tqdm):
    """A bar that Prometheus sees as well, where there is a cluster: rows done and their rate, by stage."""

    def __init__(self, *, desc: str, unit: str, **options: Any):
        super().__init__(desc=desc, unit=unit, **options)
        self._began, tags = time.perf_counter(), {"stage": desc.strip(), "unit": unit.strip()}
        self._exported = ray.is_initialized() and not self.disable
        if self._exported:  # through Ray's agent, which every node has
            self._rows = Counter("ims3_rows", "Rows that a stage has done, of the driver's runs", tuple(tags))
            self._rate = Gauge("ims3_rows_per_second", "Rows a second of the stage at work", tuple(tags))
            for metric in (self._rows, self._rate):
                metric.set_default_tags(tags)

    def update(self, n: float | None = 1) -> bool | None:
        if self._exported and n:
            self._rows.inc(n)
            self._rate.set((self.n + n - self.initial) / max(1e-3, time.perf_counter() - self._began))
        return super().update(n)

    def close(self) -> None:
        if self._exported:
            self._rate.set(0.0)  # nothing is at work any more
        super().close()


class Message(TypedDict):
    """What a training posts: the steps done, and metrics where the last one was a log step."""

    step: int
    metrics: dict[str, float]


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Board:
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


def start_board() -> ActorHandle:
    """A Board on this process's own node, which no other node's loss takes away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return cast(ActorHandle, Board.options(scheduling_strategy=here).remote())


@contextlib.contextmanager
def watch(board: ActorHandle, receive: Callable[[Message], None]) -> Iterator[None]:
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
