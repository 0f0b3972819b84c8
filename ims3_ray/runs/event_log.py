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
        earlier = [line for line, _ in _read_lines(self._folder)[0]]
        self._folder.write(LOG, ("\n".join([*earlier, line]) + "\n").encode())


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
    return [event for _, event in _read_lines(folder)[0]]


def _read_lines(folder: Directory) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """Return the valid lines with their events, and the number of damaged lines."""
    valid, damaged = [], 0
    text = folder.read(LOG).decode(errors="replace") if folder.exists(LOG) else ""
    for line in filter(None, text.split("\n")):  # an event may contain other line separators
        try:
            event = json.loads(line)
            valid.append((line, {"time": event["time"], "event": event["event"], **event}))
        except (ValueError, RecursionError, TypeError, LookupError):
            damaged += 1
    return valid, damaged
