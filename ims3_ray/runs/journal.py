"""What a run tells while it runs: one JSON line an event, in <root>/runs/<recipe>-<key>/log.jsonl."""

import json
from typing import Any

from ims3_ray.storage.artifacts import Directory

from .records import now

LOG = "log.jsonl"


class Journal:
    """The log of one run; a run that goes on writes on. Whole each time: object stores know no appending."""

    def __init__(self, folder: Directory):
        self._folder = folder
        if damaged := _read_lines(folder)[1]:
            self.write("log mended", lines_left_out=damaged)

    def write(self, event: str, **details: object) -> None:
        """Add an event to those that are there, earlier drivers' among them."""
        line = json.dumps({"time": now(), "event": event, **details}, ensure_ascii=False)
        self._folder.write(LOG, ("\n".join([*_read_lines(self._folder)[0], line]) + "\n").encode())


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
