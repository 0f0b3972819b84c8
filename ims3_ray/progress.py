"""What a person sees while stages run: one bar a stage, fed by the driver."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

PATIENCE_S = 10.0  # `delay` of what is short for most data
QUIET_REFRESH_S = 60  # between lines where the output is no terminal
RUN = ContextVar("run", default="")  # whose bars these are
_ALONE = ContextVar("alone", default=False)


class Lines:
    """Standard error as a log takes it: what tqdm writes over a line is a line of its own."""

    def write(self, text: str) -> None:
        if text.strip("\r\n\x1b[A "):  # else it moves the cursor
            sys.stderr.write(text.strip("\r\n").rstrip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


class Bar(tqdm):
    """A bar on a terminal; elsewhere a line when a stage has begun, a line a minute, and one at its end."""

    def __init__(self, *, desc: str, unit: str, **options: Any):
        terminal = sys.stderr.isatty()
        interval = 0.2 if terminal else QUIET_REFRESH_S
        options |= {"mininterval": interval, "maxinterval": max(interval, 10), "dynamic_ncols": terminal}
        options |= {
            "ascii": not terminal,
            "file": sys.stderr if terminal else Lines(),
            "disable": _ALONE.get(),
        }
        super().__init__(desc=f"{desc:>9}", unit=f" {unit}", **options)


BAR: type[Bar] = Bar  # cluster/ puts one here that Prometheus sees as well


def bar(stage: str, total: int | None, unit: str, done: int = 0, delay: float = 0.0) -> Bar:
    """A bar on standard error, or lines where that is a file; none before `delay` seconds."""
    return BAR(desc=stage, total=total, initial=done, unit=unit, delay=delay)


@contextmanager
def alone(shown: Bar) -> Iterator[Bar]:
    """Within the block `shown` stands for all that is done: bars that are made there stay unseen."""
    token = _ALONE.set(True)
    try:
        with shown:
            yield shown
    finally:
        _ALONE.reset(token)


@contextmanager
def of_run(name: str) -> Iterator[None]:
    """Within the block bars are of the run `name`."""
    token = RUN.set(name)
    try:
        yield
    finally:
        RUN.reset(token)
