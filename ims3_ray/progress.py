"""What a person sees while stages run: one bar a stage, fed by the driver."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    Bar = tqdm[object]
PATIENCE_S = 10.0  # `delay` of what is short for most data
QUIET_REFRESH_S = 10  # between lines where the output is no terminal
BAR: Callable[..., "Bar"] = tqdm  # cluster/ puts one here that Prometheus sees as well
_ALONE = ContextVar("alone", default=False)


def bar(stage: str, total: int | None, unit: str, done: int = 0, delay: float = 0.0) -> "Bar":
    """A bar on standard error, a line every few seconds where that is a file; none before `delay` seconds."""
    terminal = sys.stderr.isatty()
    return BAR(
        desc=f"{stage:>9}",
        total=total,
        initial=done,
        unit=f" {unit}",
        delay=delay,
        mininterval=0.2 if terminal else QUIET_REFRESH_S,
        ascii=not terminal,
        dynamic_ncols=terminal,
        file=sys.stderr,
        disable=_ALONE.get(),
    )


@contextmanager
def alone(shown: "Bar") -> Iterator["Bar"]:
    """Within the block `shown` stands for all that is done: bars that are made there stay unseen."""
    token = _ALONE.set(True)
    try:
        with shown:
            yield shown
    finally:
        _ALONE.reset(token)
