"""Tasks whose results come in order, a few at a time."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import ray

from .resources import DEFAULT_PLACEMENT

CPUS_PER_TASK = 0.5
LOOK_S = 1.0  # between looks whether to stop
STOP: ContextVar[threading.Event] = ContextVar("STOP")  # of what is done in threads: asks them to end
Result = TypeVar("Result")


def map_in_order(
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
    most: int,
    **resources: Any,
) -> Iterator[Result]:
    """`function(*values)` for all of `arguments`, in their order, each a task of its own.

    It reserves CPUS_PER_TASK, or what `resources` say as Ray's options.

    At most `most` are on their way or wait to be taken, so that what they give needs bounded memory.
    """
    reserved: dict[str, Any] = {"num_cpus": CPUS_PER_TASK} | resources
    task = ray.remote(**reserved, **DEFAULT_PLACEMENT)(function)
    pending: deque[Any] = deque()
    for values in arguments:
        if len(pending) == most:
            yield ray.get(pending.popleft())
        pending.append(task.remote(*values))
    while pending:
        yield ray.get(pending.popleft())


def first_ready(pending: list[Any]) -> Any:
    """The first of `pending` that is ready. SystemExit where STOP is set: no thread may wait as Ray goes."""
    while True:
        ready, _ = ray.wait(pending, num_returns=1, timeout=LOOK_S)
        if (stop := STOP.get(None)) and stop.is_set():
            raise SystemExit
        if ready:
            return ready[0]


def map_on_cluster(function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """`in_order` on the CPUs that the cluster has now; in this process where there are none.

    For what should start no node: one that grows has GPUs, too, and bills them.
    """
    at_once = int(ray.cluster_resources().get("CPU", 0) / CPUS_PER_TASK) if ray.is_initialized() else 0
    if not at_once:
        return itertools.starmap(function, arguments)
    return map_in_order(function, arguments, most=2 * at_once)  # as many again wait for their turn
