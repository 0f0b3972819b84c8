"""Lines and progress bars on the terminal, with the output of libraries redirected to a file.

On a terminal a bar updates every second and leaves one line with its duration. In a log it is a line per
minute.
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

BAR_DELAY_S = 10.0  # `delay` of work that is short for most data
SPINNER_DELAY_S = 2.0
TERMINAL_S, LINES_S = 1.0, 60.0  # between updates on a terminal, and in a log
TIMED, COUNTED = "{desc}: {elapsed}{postfix}", "{desc}: {n_fmt}{unit} [{elapsed}{postfix}]"
OF_TOTAL = "{desc}: {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]"
DRAWN = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]"
RUN = ContextVar("run", default="")  # the run's name, a label of its bars in Prometheus
_HIDDEN = ContextVar("hidden", default=False)
_stderr: TextIO | None = None
_library_log: Path | None = None


def create_log() -> Path:
    """Create an empty file below TMPDIR that only its owner can read."""
    number, name = tempfile.mkstemp(prefix=f"ims3-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log")
    os.close(number)
    return Path(name)


def redirect_library_output() -> None:
    """Redirect standard error, with the output of Ray's C++, MLflow and warnings, to a file.

    For a process that runs one command; `message_stream` is then the original standard error.
    """
    global _stderr, _library_log
    options: dict[str, Any] = {"buffering": 1, "encoding": sys.stderr.encoding, "errors": "backslashreplace"}
    _library_log = create_log()
    _stderr = open(os.dup(2), "w", **options)  # noqa: SIM115 (open until the process ends)
    with _library_log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = open(2, "w", **options, closefd=False)  # noqa: SIM115


def message_stream() -> TextIO:
    """Return the stream for messages: the original standard error."""
    return _stderr or sys.stderr


def library_log() -> Path | None:
    """Return the file with the output of libraries, or None if it is not redirected."""
    return _library_log


def print_line(line: str, stream: TextIO | None = None) -> None:
    """Print a line at once, above a bar if there is one, to `stream` or standard output."""
    with tqdm.external_write_mode(file=message_stream()):
        print(line, file=stream, flush=True)


def tqdm_options(delay: float = 0.0) -> dict[str, Any]:
    """tqdm's options for a bar on a terminal, or a line per minute elsewhere, from `delay` seconds on."""
    stream = message_stream()
    if stream.isatty():
        return {"file": stream, "mininterval": 0.2, "dynamic_ncols": True, "delay": delay}
    delay = max(delay, LINES_S)
    return {"file": LineStream(), "mininterval": LINES_S, "maxinterval": LINES_S, "delay": delay}


class LineStream:
    """A stream for logs: each update of a bar is a line of its own."""

    def write(self, text: str) -> None:
        if text.strip("\r\n\x1b[A "):  # else tqdm only moves the cursor
            message_stream().write(text.strip("\r\n").rstrip() + "\n")

    def flush(self) -> None:
        message_stream().flush()


class Bar(tqdm):
    """A bar on a terminal or a line per minute elsewhere, and one line with the work done at its end."""

    def __init__(self, *, desc: str, unit: str, delay: float = 0.0, has_line: bool = True, **options: Any):
        self._unit, self._delay, self._has_line, self._ended = unit, delay, has_line, threading.Event()
        is_terminal = message_stream().isatty()
        interval_s = TERMINAL_S if is_terminal else LINES_S
        total = (DRAWN if is_terminal else OF_TOTAL) if options.get("total") else COUNTED
        options |= {"bar_format": total if unit else TIMED, "disable": _HIDDEN.get(), "leave": False}
        super().__init__(desc=f"{desc:>9}", unit=f" {unit}", miniters=0, **options, **tqdm_options(delay))
        self._ticker = threading.Thread(target=self._tick, args=(interval_s,), name="bar", daemon=True)
        if not self.disable:
            self._ticker.start()

    def _tick(self, interval_s: float) -> None:
        """Refresh the bar even if its count does not change."""
        with suppress(OSError, ValueError):  # a broken stream also fails in `update`, which raises it
            while not self._ended.wait(interval_s):
                if time.time() >= self.last_print_t + interval_s:
                    self.refresh()

    def refresh(self, *options: Any, **more: Any) -> None:
        """Display the bar as it is now, unless its delay is not over."""
        if self.disable or time.time() < getattr(self, "start_t", 0.0) + self.delay:
            return
        with self.get_lock():  # tqdm would hold it for ever if the stream is broken
            super().refresh(*options, **more | {"nolock": True})
        self.last_print_t = time.time()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._has_line = self._has_line and kind is None  # an error has its own line
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


BAR_CLASS: type[Bar] = Bar  # `cluster` replaces it by one that exports to Prometheus


def bar(stage: str, total: int | None, unit: str, done: int = 0, delay: float = 0.0) -> Bar:
    """A bar that counts `unit`, shown after `delay` seconds; `done` were found complete."""
    return BAR_CLASS(desc=stage, total=total, initial=done, unit=unit, delay=delay)


def timed(stage: str) -> Bar:
    """A bar with the elapsed seconds of a stage that cannot be counted."""
    return Bar(desc=stage, unit="")


def spinner(part: str) -> Bar:
    """The elapsed seconds of preparations; leaves no line."""
    return Bar(desc=part, unit="", delay=SPINNER_DELAY_S, has_line=False)


@contextmanager
def hide_inner_bars(outer: Bar) -> Iterator[Bar]:
    """Display only `outer` during the block; bars that are made in it stay hidden."""
    token = _HIDDEN.set(True)
    try:
        with outer:
            yield outer
    finally:
        _HIDDEN.reset(token)


@contextmanager
def run_name(name: str) -> Iterator[None]:
    """Label the bars of the block with the run `name`."""
    token = RUN.set(name)
    try:
        yield
    finally:
        RUN.reset(token)
