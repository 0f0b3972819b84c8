"""What a run tells while it runs: one JSON line an event below its record, and a sign that its driver lives.

<root>/runs/<recipe>-<key>/log.jsonl, alive.json, libraries.log
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from ims3_ray import progress
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory
from ims3_ray.text import redacted

from .records import now

LOG, ALIVE, LIBRARIES = "log.jsonl", "alive.json", "libraries.log"
BEAT_S = 10.0  # between signs of life
DEAD_AFTER_S = 6 * BEAT_S  # without one: a busy machine may miss a few


class Journal:
    """The log of one run; a run that goes on writes on. Whole each time: object stores know no appending."""

    def __init__(self, folder: Directory):
        self._folder = folder
        if damaged := _read_lines(folder)[1]:
            self.write("log mended", lines_left_out=damaged)

    def write(self, event: str, **details: object) -> None:
        """Add an event to those that are there, another driver's among them."""
        line = json.dumps({"time": now(), "event": event, **details}, ensure_ascii=False)
        self._folder.write(LOG, ("\n".join([*_read_lines(self._folder)[0], line]) + "\n").encode())

    def beat(self) -> None:
        """Leave a sign of life."""
        sign = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
        with contextlib.suppress(OSError, InputError):  # the run itself meets it too
            self._folder.write_json(ALIVE, sign)

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Leave a sign of life every few seconds while the block runs; after it what libraries wrote."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.is_set():
                self.beat()
                ended.wait(BEAT_S)

        thread = threading.Thread(target=beat, name="sign-of-life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(OSError, InputError):
                (self._folder / ALIVE).delete()
                if (log := progress.log()) and (text := log.read_text(errors="replace")):
                    self._folder.write(LIBRARIES, redacted(text).encode())


def read_log(folder: Directory) -> list[dict[str, Any]]:
    """The events of a run, oldest first, but for lines that are cut or damaged; none where it never began."""
    return [json.loads(line) for line in _read_lines(folder)[0]]


def _read_lines(folder: Directory) -> tuple[list[str], int]:
    """The lines that are whole, and how many are not."""
    lines = folder.read(LOG).decode(errors="replace").splitlines() if folder.exists(LOG) else []
    whole = [line for line in lines if _is_event(line)]
    return whole, len(lines) - len(whole)


def _is_event(line: str) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and {"time", "event"} <= set(event)


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a run's driver."""

    age: float  # seconds
    pid: int
    host: str

    @property
    def is_of_other(self) -> bool:
        """Whether another driver gave it that may be at work yet, as far as this host can tell."""
        if self.age > DEAD_AFTER_S or (self.pid, self.host) == (os.getpid(), socket.gethostname()):
            return False
        return self.host != socket.gethostname() or psutil.pid_exists(self.pid)


def last_sign(folder: Directory) -> Sign | None:
    """None where there never was one, or it is damaged: the next is whole."""
    if not folder.exists(ALIVE):
        return None
    try:
        sign = folder.read_json(ALIVE)
        return Sign(max(0.0, time.time() - sign["time"]), int(sign["pid"]), str(sign["host"]))
    except (ValueError, LookupError, TypeError):
        return None


def warn_of_other(folder: Directory, say: Callable[[str], None]) -> None:
    """Say so where another driver works on the run in `folder`: all is done twice, with the same bytes."""
    sign = last_sign(folder)
    if sign and sign.is_of_other:
        say(
            f"warning: {folder.name} has another driver, process {sign.pid} on {sign.host}, alive "
            f"{sign.age:.0f} s ago; stop one of the two, or both do the same work (one that was killed on "
            f"another host is told from it after {DEAD_AFTER_S:.0f} s)"
        )


def is_dead(folder: Directory) -> bool:
    """Whether a run that says it runs has left no sign of life for a while."""
    sign = last_sign(folder)
    return sign is None or sign.age > DEAD_AFTER_S
