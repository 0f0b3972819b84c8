"""What a person sees while stages run: one bar a stage, fed by the driver or, from Train workers, through a small actor."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from tqdm import tqdm

POLL_S = 0.5
QUIET_REFRESH_S = 10  # between lines where the output is no terminal


def bar(stage: str, total: int, unit: str, done: int = 0) -> tqdm:
    """A progress bar on standard error; a line every few seconds where that is a file."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=f"{stage:>9}",
        total=total,
        initial=done,
        unit=f" {unit}",
        mininterval=0.2 if terminal else QUIET_REFRESH_S,
        ascii=not terminal,
        dynamic_ncols=terminal,
        file=sys.stderr,
    )


@ray.remote(num_cpus=0)
class Board:
    """Where Train workers leave their metrics and the driver, the only one to write to MLflow, picks them up."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []

    def post(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        messages, self._messages = self._messages, []
        return messages


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
