"""Ray tasks with ordered results and bounded memory."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from .resources import DEFAULT_PLACEMENT

CPUS_PER_TASK = 0.5
Result = TypeVar("Result")


def map_in_order(
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
    max_pending: int,
    **resources: Any,
) -> Iterator[Result]:
    """Yield `function(*values)` for each of `arguments`, in order, each computed by its own task.

    At most `max_pending` tasks run or hold a result, which bounds memory. A task reserves CPUS_PER_TASK, or
    `resources` (Ray's options).
    """
    options: dict[str, Any] = {"num_cpus": CPUS_PER_TASK} | resources
    task = ray.remote(**options, **DEFAULT_PLACEMENT)(function)
    pending: deque[Any] = deque()
    for values in arguments:
        if len(pending) == max_pending:
            yield ray.get(pending.popleft())
        pending.append(task.remote(*values))
    while pending:
        yield ray.get(pending.popleft())


def map_on_cluster(function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """`map_in_order` on the cluster's present CPUs, or in this process if there are none.

    Requests no further node: an autoscaling cluster would add, and bill, nodes with GPUs.
    """
    num_tasks = int(ray.cluster_resources().get("CPU", 0) / CPUS_PER_TASK) if ray.is_initialized() else 0
    if not num_tasks:
        return itertools.starmap(function, arguments)
    return map_in_order(function, arguments, 2 * num_tasks)  # as many again wait in the queue
