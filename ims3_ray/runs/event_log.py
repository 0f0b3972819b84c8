"""What a run tells while it runs: one JSON line an event, and what libraries wrote.

<root>/runs/<recipe>-<key>/log.jsonl, libraries.log
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from ims3_ray import progress
from ims3_ray.display import redact
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory

from .records import now

LOG, LIBRARIES = "log.jsonl", "libraries.log"


class EventLog:
    """The log of one run; a run that goes on writes on. Whole each time: object stores know no appending."""

    def __init__(self, folder: Directory):
        self._folder = folder
        if damaged := _read_lines(folder)[1]:
            self.write("log mended", lines_left_out=damaged)

    def write(self, event: str, **details: object) -> None:
        """Add an event to those that are there, earlier drivers' among them."""
        line = json.dumps({"time": now(), "event": event, **details}, ensure_ascii=False)
        self._folder.write(LOG, ("\n".join([*_read_lines(self._folder)[0], line]) + "\n").encode())


@contextlib.contextmanager
def save_library_log(folder: Directory) -> Iterator[None]:
    """After the block, what libraries wrote in this process stands in the folder."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError, InputError):
            if (log := progress.library_log()) and (text := log.read_text(errors="replace")):
                folder.write(LIBRARIES, redact(text).encode())


def read_events(folder: Directory) -> list[dict[str, Any]]:
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
