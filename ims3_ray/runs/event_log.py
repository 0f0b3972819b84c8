"""A run's log: events as JSON lines in runs/<recipe>-<key>/log.jsonl, library output in libraries.log."""

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
    """The log of one run, which a resumed run continues.

    Each event rewrites the whole file, since object stores cannot append.
    """

    def __init__(self, folder: Directory):
        self._folder = folder
        if damaged := _read_lines(folder)[1]:
            self.write("log mended", lines_left_out=damaged)

    def write(self, event: str, **details: object) -> None:
        """Append an event to those in the file, which may come from earlier drivers."""
        line = json.dumps({"time": now(), "event": event, **details}, ensure_ascii=False)
        self._folder.write(LOG, ("\n".join([*_read_lines(self._folder)[0], line]) + "\n").encode())


@contextlib.contextmanager
def save_library_log(folder: Directory) -> Iterator[None]:
    """After the block, save the library output of this process to the folder."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError, InputError):
            if (log := progress.library_log()) and (text := log.read_text(errors="replace")):
                folder.write(LIBRARIES, redact(text).encode())


def read_events(folder: Directory) -> list[dict[str, Any]]:
    """Return a run's events, oldest first, without damaged lines; [] if there is no log."""
    return [json.loads(line) for line in _read_lines(folder)[0]]


def _read_lines(folder: Directory) -> tuple[list[str], int]:
    """Return the valid lines, and the number of damaged ones."""
    lines = folder.read(LOG).decode(errors="replace").splitlines() if folder.exists(LOG) else []
    valid = [line for line in lines if _is_event(line)]
    return valid, len(lines) - len(valid)


def _is_event(line: str) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and {"time", "event"} <= set(event)
