"""What a run tells while it runs: one JSON line an event below its record, and a sign that its driver lives.

<root>/runs/<recipe>-<key>/log.jsonl, alive.json
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory

from .records import now

LOG, ALIVE = "log.jsonl", "alive.json"
BEAT_S = 10.0  # between signs of life
DEAD_AFTER_S = 6 * BEAT_S  # without one: a busy machine may miss a few


class Journal:
    """The log of one run; a run that goes on writes on. Whole each time: object stores know no appending."""

    def __init__(self, folder: Directory):
        self._folder = folder
        self._lines, damaged = _read_lines(folder)
        if damaged:
            self.write("log mended", lines_left_out=damaged)

    def write(self, event: str, **details: object) -> None:
        self._lines.append(json.dumps({"time": now(), "event": event, **details}, ensure_ascii=False))
        self._folder.write(LOG, ("\n".join(self._lines) + "\n").encode())

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Leave a sign of life every few seconds while the block runs."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.is_set():
                sign = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
                with contextlib.suppress(OSError, InputError):  # the run itself meets it too
                    self._folder.write_json(ALIVE, sign)
                ended.wait(BEAT_S)

        thread = threading.Thread(target=beat, name="sign-of-life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


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


def seconds_since_alive(folder: Directory) -> float | None:
    """Since the last sign of life; None where there never was one, or it is damaged: the next is whole."""
    if not folder.exists(ALIVE):
        return None
    try:
        return max(0.0, time.time() - folder.read_json(ALIVE)["time"])
    except (ValueError, LookupError, TypeError):
        return None
