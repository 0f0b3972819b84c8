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
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], most: int
) -> Iterator[Result]:
    """`function(*values)` for all of `arguments`, in their order, each a task.

    At most `most` are on their way or wait to be taken, so that what they give needs bounded memory.
    """
    task = ray.remote(num_cpus=CPUS_PER_TASK, **ANYWHERE)(function)
    pending: deque[Any] = deque()
    for values in arguments:
        if len(pending) == most:
            yield ray.get(pending.popleft())
        pending.append(task.remote(*values))
    while pending:
        yield ray.get(pending.popleft())


def each(function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """`in_order` on all CPUs of the cluster; in this process where there is none."""
    if not ray.is_initialized():
        return itertools.starmap(function, arguments)
    most = int(ray.cluster_resources().get("CPU", 1) / CPUS_PER_TASK)
    return in_order(function, arguments, most=2 * max(1, most))  # as many again wait for their turn
