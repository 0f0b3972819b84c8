"""Tasks whose results come in order, a few at a time."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from .machine import ANYWHERE

CPUS_PER_TASK = 0.5
Result = TypeVar("Result")


def in_order(
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
    most: int,
    cpus: float = CPUS_PER_TASK,
) -> Iterator[Result]:
    """`function(*values)` for all of `arguments`, in their order, each a task that reserves so many CPUs.

    At most `most` are on their way or wait to be taken, so that what they give needs bounded memory.
    """
    task = ray.remote(num_cpus=cpus, **ANYWHERE)(function)
    pending: deque[Any] = deque()
    for values in arguments:
        if len(pending) == most:
            yield ray.get(pending.popleft())
        pending.append(task.remote(*values))
    while pending:
        yield ray.get(pending.popleft())


def each(function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """`in_order` on the CPUs that the cluster has now; in this process where there are none.

    For what should start no node: one that grows has GPUs, too, and bills them.
    """
    at_once = int(ray.cluster_resources().get("CPU", 0) / CPUS_PER_TASK) if ray.is_initialized() else 0
    if not at_once:
        return itertools.starmap(function, arguments)
    return in_order(function, arguments, most=2 * at_once)  # as many again wait for their turn
