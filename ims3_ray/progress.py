"""What a person sees while stages run: one bar a stage, fed by the driver or, from Train workers, through a
small actor.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

POLL_S = 0.5
PATIENCE_S = 10.0  # `delay` of what is short for most data
QUIET_REFRESH_S = 10  # between lines where the output is no terminal


class Counted(tqdm):
    """A bar whose progress Prometheus sees as well: rows done and their rate, by stage."""

    def __init__(self, *args: Any, stage: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        tags = {"stage": stage, "unit": str(kwargs.get("unit", "")).strip()}
        self._count = _metric(Counter, "ims3_rows", "Rows that a stage has done, of the driver's runs", tags)
        self._speed = _metric(Gauge, "ims3_rows_per_second", "Rows a second of the stage at work", tags)
        self._began = time.perf_counter()

    def update(self, n: float | None = 1) -> bool | None:
        if self._count is not None and n:
            self._count.inc(n)
            self._speed.set((self.n + n - self.initial) / max(1e-3, time.perf_counter() - self._began))
        return super().update(n)

    def close(self) -> None:
        if self._speed is not None and not self.disable:
            self._speed.set(0.0)  # nothing is at work any more
        super().close()


def _metric(kind: Any, name: str, description: str, tags: dict[str, str]) -> Any:
    """One of Ray's metrics, which its agent exports on every node; None where this process has no cluster."""
    if not ray.is_initialized():
        return None
    metric = kind(name, description=description, tag_keys=tuple(tags))
    metric.set_default_tags(tags)
    return metric


def bar(stage: str, total: int | None, unit: str, done: int = 0, delay: float = 0.0) -> tqdm:
    """A progress bar on standard error; a line every few seconds where that is a file. Nothing before `delay`
    seconds.
    """
    terminal = sys.stderr.isatty()
    return Counted(
        stage=stage,
        desc=f"{stage:>9}",
        total=total,
        initial=done,
        unit=f" {unit}",
        delay=delay,
        mininterval=0.2 if terminal else QUIET_REFRESH_S,
        ascii=not terminal,
        dynamic_ncols=terminal,
        file=sys.stderr,
    )


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Board:
    """Where Train workers leave their metrics and the driver, the only one to write to MLflow, picks them up.

    One that is started again has forgotten what was not picked up yet.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []

    def post(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        messages, self._messages = self._messages, []
        return messages


def board_here() -> "ray.actor.ActorHandle":
    """A Board on this process's own node, which no other node's loss takes away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()


@contextlib.contextmanager
def watching(board: "ray.actor.ActorHandle", receive: Callable[[dict[str, Any]], None]) -> Iterator[None]:
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
