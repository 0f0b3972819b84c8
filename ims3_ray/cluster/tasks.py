"""Ray tasks with ordered results and bounded memory, and actors for long jobs."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray

from .resources import DEFAULT_PLACEMENT

CPUS_PER_TASK = 0.5  # fits beside the actors of a machine of one core
WAITING_CPUS = 16.0  # of tasks in flight beyond the present CPUs; more could start nodes with GPUs
MAX_ACTORS = 256
WORTH_A_NODE = 256  # calls that take longer in one process than a node takes to start
Result = TypeVar("Result")


def map_in_order(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], max_pending: int, **resources: Any
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


@ray.remote(max_restarts=-1, max_task_retries=3)  # as many retries as Ray's tasks have
class JobActor:
    def start(self) -> None:
        """Return, since the process is up."""

    def stream(self, function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
        yield from function(*arguments)


def stream_jobs(
    function: Callable[..., Iterator[Any]], jobs: Sequence[tuple[Any, ...]], **resources: Any
) -> Generator[tuple[int, Any]]:
    """Yield (index of a job, item) for each item that `function(*job)` yields, as the items come.

    Jobs start in their order, on actors with `resources` (Ray's options). An actor takes job after job, so
    that its process starts CUDA, which takes seconds, only once. It ends when no job waits, since other runs
    may need its resources. A job whose process dies is repeated, three times at most. `close` ends all jobs.
    """
    waiting, pool = deque(enumerate(jobs)), JobActor.options(**resources, **DEFAULT_PLACEMENT)
    actors: list[Any] = [pool.remote() for _ in range(min(len(jobs), MAX_ACTORS))]
    starting = {actor.start.remote(): actor for actor in actors}
    running: dict[Any, tuple[int, Any]] = {}
    del actors
    try:
        while waiting or running:
            event: Any = ray.wait([*starting, *running], num_returns=1)[0][0]
            if event in running:
                index, actor = running[event]
                if (item := next(event, None)) is not None:
                    yield index, ray.get(item)
                    continue
                del running[event]
            else:
                actor = starting.pop(event)
                ray.get(event)
            if waiting:
                index, job = waiting.popleft()
                running[actor.stream.remote(function, *job)] = index, actor
            if not waiting:
                starting.clear()
            del actor
    finally:
        for actor in (*starting.values(), *(actor for _, actor in running.values())):
            ray.kill(actor)


def map_on_cluster(function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
    """`map_in_order`; in this process if there is no cluster, or little work and a cluster without CPUs.

    The head of an autoscaling cluster has no CPUs. More than WORTH_A_NODE calls make it start a node.
    """
    if ray.is_initialized() and (ray.cluster_resources().get("CPU") or len(arguments) > WORTH_A_NODE):
        return map_in_order(function, arguments, len(arguments))
    return itertools.starmap(function, arguments)
