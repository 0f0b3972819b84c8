"""Ray tasks with ordered results and bounded memory."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray

from .resources import DEFAULT_PLACEMENT

CPUS_PER_TASK = 0.5  # fits beside the actors of a machine of one core
WAITING_CPUS = 16.0  # of tasks in flight beyond the present CPUs; more could start nodes with GPUs
WORTH_A_NODE = 256  # calls that take longer in one process than a node takes to start
Result = TypeVar("Result")


def map_in_order(
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
    max_pending: int,
    **resources: Any,
) -> Iterator[Result]:
    """Yield `function(*values)` for each of `arguments`, in order, each computed by its own task.

    At most `max_pending` tasks run or hold a result, which bounds memory. A task reserves CPUS_PER_TASK, or
    `resources` (Ray's options). Tasks without a GPU are also limited to the present CPUs or WAITING_CPUS: an
    autoscaling cluster starts a node with CPUs only for these, and nodes with GPUs for more.
    """
    options: dict[str, Any] = {"num_cpus": CPUS_PER_TASK} | resources
    task = ray.remote(**options, **DEFAULT_PLACEMENT)(
        lambda *values: function(*values)
    )  # `function` may be a partial
    pending: deque[Any] = deque()
    limit = _max_in_flight(max_pending, options)
    for values in arguments:
        while len(pending) >= limit:
            yield ray.get(pending.popleft())
            limit = _max_in_flight(max_pending, options)  # nodes may have joined
        pending.append(task.remote(*values))
    while pending:
        yield ray.get(pending.popleft())


def _max_in_flight(max_pending: int, options: Mapping[str, Any]) -> int:
    if options.get("num_gpus"):
        return max_pending
    cpus = max(WAITING_CPUS, ray.cluster_resources().get("CPU", 0.0))
    return min(max_pending, max(1, int(cpus / options["num_cpus"])))


def map_on_cluster(function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
    """`map_in_order`; in this process if there is no cluster, or little work and a cluster without CPUs.

    The head of an autoscaling cluster has no CPUs. More than WORTH_A_NODE calls make it start a node.
    """
    has_cpus = ray.is_initialized() and ray.cluster_resources().get("CPU", 0)
    if has_cpus or (ray.is_initialized() and len(arguments) > WORTH_A_NODE):
        return map_in_order(function, arguments, len(arguments))
    return itertools.starmap(function, arguments)
