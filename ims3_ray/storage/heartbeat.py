"""Heartbeats: files that say which driver is at work. The store's own clock gives their age.

Hosts' clocks can differ by minutes, so a heartbeat holds no time. Its age is the difference between two
modification times that the store gave: that of the heartbeat, and that of a file written just now
(`store_time`). To watch for DEAD_AFTER_S whether the heartbeat changes would need no file, but every question
about a run would then take a minute.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass

import psutil
from pyarrow import fs

from ims3_ray.errors import InputError

from .directory import Directory

HEARTBEAT = "heartbeat.json"  # of the driver of a run
INTERVAL_S = 10.0  # between heartbeats
DEAD_AFTER_S = 6 * INTERVAL_S  # without one: a busy machine may miss a few


@dataclass(frozen=True)
class Heartbeat:
    """A driver's last heartbeat."""

    age: float  # seconds
    pid: int
    host: str
    namespace: str  # in which `pid` counts

    @property
    def is_stale(self) -> bool:
        return self.age > DEAD_AFTER_S

    @property
    def is_alive(self) -> bool:
        """Whether its driver may still be at work, as far as this process can tell."""
        return not self.is_stale and (self.namespace != pid_namespace() or psutil.pid_exists(self.pid))

    @property
    def is_of_other(self) -> bool:
        """Whether it is of another process, which may still be at work."""
        return self.is_alive and (self.pid, self.namespace) != (os.getpid(), pid_namespace())


def pid_namespace() -> str:
    """Equal for two processes if process ids mean the same for both: one boot of one machine, one container.

    Host names do not tell that: containers with the host's network have the host's name.
    """
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as boot:
        return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def store_time(folder: Directory) -> float:
    """The present by the clock that stamps files in `folder`, in seconds since 1970.

    It is the modification time of a file that is written for this and removed. If no file can be written
    there, this host's clock stands in.
    """
    name = f".time.{uuid.uuid4().hex}.tmp"
    try:
        folder.write(name, b"")
        info = folder.infos([f"{folder.path}/{name}"])[0]
        (folder / name).delete()
    except (OSError, InputError):
        return time.time()
    return time.time() if info.mtime_ns is None else info.mtime_ns / 1e9


def read_heartbeat(folder: Directory, name: str = HEARTBEAT) -> Heartbeat | None:
    """None if there is none or it is damaged: the next one is whole."""
    try:
        info = folder.infos([f"{folder.path}/{name}"])[0]
        if info.type != fs.FileType.File or info.mtime_ns is None:
            return None
        held = folder.read_json(name)
        age = max(0.0, store_time(folder) - info.mtime_ns / 1e9)
        return Heartbeat(age, int(held["pid"]), str(held["host"]), str(held["namespace"]))
    except (FileNotFoundError, ValueError, LookupError, TypeError):  # the first: deleted just now
        return None


def is_dead(folder: Directory) -> bool:
    """Whether the driver of a run has left no heartbeat for a while."""
    found = read_heartbeat(folder)
    return found is None or found.is_stale


def write_heartbeat(folder: Directory, name: str = HEARTBEAT) -> None:
    held = {"pid": os.getpid(), "host": socket.gethostname(), "namespace": pid_namespace()}
    with contextlib.suppress(OSError, InputError):  # the work itself meets it too
        folder.write_json(name, held)


@contextlib.contextmanager
def heartbeat(folder: Directory, name: str = HEARTBEAT) -> Generator[None]:
    """Write a heartbeat at once and every INTERVAL_S during the block; remove it at the end."""
    write_heartbeat(folder, name)
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(INTERVAL_S):
            write_heartbeat(folder, name)

    thread = threading.Thread(target=go_on, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError, InputError):
            (folder / name).delete()
