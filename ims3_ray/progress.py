"""What a person sees while a job runs: lines, and one bar at a time; what libraries write is kept apart.

On a terminal a bar moves every second, and leaves one line with its seconds. Elsewhere that line is all, with
one a minute before it.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from .display import noun

BAR_DELAY_S = 10.0  # `delay` of what is short for most data
SPINNER_DELAY_S = 2.0  # the same of a part of a job that has no bar otherwise
TERMINAL_S, LINES_S = 1.0, 60.0  # between looks of a bar that nothing moves
TIMED, COUNTED = "{desc}: {elapsed}{postfix}", "{desc}: {n_fmt}{unit} [{elapsed}{postfix}]"
OF_TOTAL = "{desc}: {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]"
DRAWN = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]"
RUN = ContextVar("run", default="")  # whose bars these are
_ALONE = ContextVar("alone", default=False)
_screen: TextIO | None = None
_log: Path | None = None


def create_log() -> Path:
    """A new file below TMPDIR, which its owner alone can read."""
    number, name = tempfile.mkstemp(prefix=f"ims3-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log")
    os.close(number)
    return Path(name)


def redirect_library_output() -> None:
    """From here on what others write to standard error is in a file: Ray's C++, MLflow, warnings.

    For a process that is a job and nothing else; `screen` is what standard error was.
    """
    global _screen, _log
    options: dict[str, Any] = {"buffering": 1, "encoding": sys.stderr.encoding, "errors": "backslashreplace"}
    _log = create_log()
    _screen = open(os.dup(2), "w", **options)  # noqa: SIM115 (as long as the process)
    with _log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = open(2, "w", **options, closefd=False)  # noqa: SIM115


def message_stream() -> TextIO:
    """Where a person reads what is no result: standard error, or what it was before libraries had a file."""
    return _screen or sys.stderr


def library_log() -> Path | None:
    """The file of what libraries write, its owner's alone; None where they are not kept apart."""
    return _log


def print_line(line: str, stream: TextIO | None = None) -> None:
    """Print a line, at once and beside whatever bar is shown: on standard output, or on `stream`."""
    with tqdm.external_write_mode(file=message_stream()):
        print(line, file=stream, flush=True)


def tqdm_options(delay: float = 0.0) -> dict[str, Any]:
    """tqdm's options: a bar on a terminal, a line a minute elsewhere; none before `delay` seconds."""
    if message_stream().isatty():
        return {"file": message_stream(), "mininterval": 0.2, "dynamic_ncols": True, "delay": delay}
    return {
        "file": LineStream(),
        "mininterval": LINES_S,
        "maxinterval": LINES_S,
        "delay": max(delay, LINES_S),
    }


class LineStream:
    """A stream as a log takes it: what tqdm writes over a line is a line of its own."""

    def write(self, text: str) -> None:
        if text.strip("\r\n\x1b[A "):  # else it moves the cursor
            message_stream().write(text.strip("\r\n").rstrip() + "\n")

    def flush(self) -> None:
        message_stream().flush()


class Bar(tqdm):
    """A bar on a terminal, a line a minute elsewhere; at its end one line that says what was done."""

    def __init__(self, *, desc: str, unit: str, delay: float = 0.0, has_line: bool = True, **options: Any):
        self._unit, self._delay, self._has_line, self._ended = unit, delay, has_line, threading.Event()
        terminal = message_stream().isatty()
        every = TERMINAL_S if terminal else LINES_S
        total = (DRAWN if terminal else OF_TOTAL) if options.get("total") else COUNTED
        options |= {"bar_format": total if unit else TIMED, "disable": _ALONE.get(), "leave": False}
        super().__init__(desc=f"{desc:>9}", unit=f" {unit}", miniters=0, **options, **tqdm_options(delay))
        self._ticker = threading.Thread(target=self._tick, args=(every,), name="bar", daemon=True)
        if not self.disable:
            self._ticker.start()

    def _tick(self, every: float) -> None:
        """Show it although nothing moves it."""
        with suppress(OSError, ValueError):  # of a stream that broke, whoever moves the bar hears
            while not self._ended.wait(every):
                if time.time() >= self.last_print_t + every:
                    self.refresh()

    def refresh(self, *options: Any, **more: Any) -> None:
        """Show it as it is now; not before its delay is over."""
        if self.disable or time.time() < getattr(self, "start_t", 0.0) + self.delay:
            return
        with self.get_lock():  # which tqdm itself would keep where the stream breaks
            super().refresh(*options, **more | {"nolock": True})
        self.last_print_t = time.time()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._has_line = self._has_line and kind is None  # what stopped it is told
        super().__exit__(kind, *error)

    def close(self) -> None:
        if getattr(self, "disable", True):
            return
        self._ended.set()
        self._ticker.join()
        seconds = self.format_dict["elapsed"]
        super().close()
        if self._has_line and seconds >= self._delay:
            print_line(f"{self.desc}: {self._work}{seconds:.1f} s", message_stream())

    @property
    def _work(self) -> str:
        if not self._unit:
            return ""
        of = f" of {self.total:,}" if self.total and self.n < self.total else ""
        found = f", {self.initial:,} of them found," if self.initial else ""
        return f"{self.n:,}{of} {noun(self.total or self.n, self._unit)}{found} in "


BAR_CLASS: type[Bar] = Bar  # cluster/ puts one here that Prometheus sees as well


def bar(stage: str, total: int | None, unit: str, done: int = 0, delay: float = 0.0) -> Bar:
    """A bar on standard error, or lines where that is a file; none before `delay` seconds."""
    return BAR_CLASS(desc=stage, total=total, initial=done, unit=unit, delay=delay)


def timed(stage: str) -> Bar:
    """The same of a stage that can't be counted: its seconds."""
    return Bar(desc=stage, unit="")


def spinner(part: str) -> Bar:
    """The same of what is no stage, and leaves no line."""
    return Bar(desc=part, unit="", delay=SPINNER_DELAY_S, has_line=False)


@contextmanager
def hide_inner_bars(shown: Bar) -> Iterator[Bar]:
    """Within the block `shown` stands for all that is done: bars that are made there stay unseen."""
    token = _ALONE.set(True)
    try:
        with shown:
            yield shown
    finally:
        _ALONE.reset(token)


@contextmanager
def run_name(name: str) -> Iterator[None]:
    """Within the block bars are of the run `name`."""
    token = RUN.set(name)
    try:
        yield
    finally:
        RUN.reset(token)
