"""Who is at work: drivers' signs of life, and one driver at a time where several would do the same work."""

import contextlib
import logging
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass

import psutil

from ims3_ray.errors import InputError

from .directory import Directory

ALIVE = "alive.json"  # of the driver of a run
AT_WORK = re.compile(r"\.at-work\.[0-9a-f]{32}\.tmp")  # no artefact's manifest names what ends so
BEAT_S = 10.0  # between signs of life
DEAD_AFTER_S = 6 * BEAT_S  # without one: a busy machine may miss a few
LOOK_S = 2.0  # at most, between looks at another's sign
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sign:
    """A driver's last sign of life."""

    age: float  # seconds
    pid: int
    host: str

    @property
    def is_alive(self) -> bool:
        """Whether its driver may be at work yet, as far as this host can tell."""
        return self.age <= DEAD_AFTER_S and (self.host != socket.gethostname() or psutil.pid_exists(self.pid))

    @property
    def is_of_other(self) -> bool:
        """Whether another process gave it that may be at work yet."""
        return self.is_alive and (self.pid, self.host) != (os.getpid(), socket.gethostname())


def read_sign(folder: Directory, name: str = ALIVE) -> Sign | None:
    """None where there is none, or it is damaged: the next is whole."""
    try:
        if not folder.exists(name):
            return None
        sign = folder.read_json(name)
        return Sign(max(0.0, time.time() - sign["time"]), int(sign["pid"]), str(sign["host"]))
    except (FileNotFoundError, ValueError, LookupError, TypeError):  # the first: deleted just now
        return None


def is_dead(folder: Directory) -> bool:
    """Whether a run that says it runs has left no sign of life for a while."""
    sign = read_sign(folder)
    return sign is None or sign.age > DEAD_AFTER_S


def beat(folder: Directory, name: str = ALIVE) -> None:
    """Leave a sign of life."""
    sign = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
    with contextlib.suppress(OSError, InputError):  # the work itself meets it too
        folder.write_json(name, sign)


@contextlib.contextmanager
def beating(folder: Directory, name: str = ALIVE) -> Generator[None]:
    """Leave a sign of life at once and every few seconds while the block runs, and none after it."""
    beat(folder, name)
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(BEAT_S):
            beat(folder, name)

    thread = threading.Thread(target=go_on, name="sign-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError, InputError):
            (folder / name).delete()


@contextlib.contextmanager
def alone(folder: Directory) -> Generator[None]:
    """Run the block while no other driver is within its own on the same folder; a line tells of a wait.

    Each leaves a sign and then looks for others': whoever sees one takes his own back and waits, and of two
    that begin together one at least does. No lock of a filesystem is needed, which object stores lack. One
    that gives no sign for DEAD_AFTER_S is not waited for; should it live, both make the same bytes.
    """
    own, is_told = f".at-work.{uuid.uuid4().hex}.tmp", False
    while True:
        if not (other := _other(folder, own)):
            with beating(folder, own):
                if not (other := _other(folder, own)):
                    yield
                    return
        name, sign = other
        if not is_told:
            place, is_told = "/".join(folder.path.rsplit("/", 2)[-2:]), True
            _logger.warning(
                "%s: process %d on %s is at work on it, alive %.0f s ago; waiting for what it makes",
                *(place, sign.pid, sign.host, sign.age),
            )
        time.sleep(random.uniform(0.1, 1.0) * LOOK_S)  # two that saw each other do not meet again
        while (seen := read_sign(folder, name)) and seen.is_of_other:
            time.sleep(LOOK_S)


def _other(folder: Directory, own: str) -> tuple[str, Sign] | None:
    """Another driver's sign, and its file; what drivers that are dead left is removed."""
    for name in folder.files():
        if AT_WORK.fullmatch(name) and name != own:
            sign = read_sign(folder, name)
            if sign and sign.is_of_other:
                return name, sign
            if not sign or not sign.is_alive:
                (folder / name).delete()
    return None
