"""Reading ahead: what comes next is fetched on threads while what came is used, a few at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(read: Callable[[Item], Result], items: Iterable[Item], most: int) -> Iterator[Result]:
    """`read` of every item, in their order; at most `most` results are in memory beside the one in use."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(most) as pool:
        for item in items:
            if len(pending) == most:
                yield pending.popleft().result()
            pending.append(pool.submit(read, item))
        while pending:
            yield pending.popleft().result()
