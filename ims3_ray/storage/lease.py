"""Heartbeats and leases: files that say which driver is at work on a folder.

Heartbeat: hosts' clocks can differ by minutes, so the file holds no time. Its age is the difference between
two modification times that the store gave: that of the heartbeat, and that of a file written just now.

Lease: each driver writes a lease file of its own name and then lists the folder. A driver that sees another's
lease withdraws its own and waits. If two start together, at least one withdraws, since the driver that writes
second lists both. This needs no lock, only that a list shows what was written before, as it does on local
disks, NFS and S3. pyarrow 25 has no conditional writes (it drops If-None-Match).
"""

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
from pyarrow import fs

from ims3_ray.errors import InputError, OutageError

from .directory import Directory

HEARTBEAT = "heartbeat.json"  # written by the driver of a run
INTERVAL_S = 10.0  # between heartbeats
DEAD_AFTER_S = 6 * INTERVAL_S  # a busy machine may miss a few heartbeats
LEASE = re.compile(r"\.lease\.[0-9a-f]{32}\.tmp")  # manifests list no file with this suffix
POLL_S = 2.0  # at most, between looks at another driver's lease
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeat:
    """The last heartbeat of a driver."""

    age: float  # seconds
    pid: int
    host: str
    namespace: str  # `pid` is unique in it

    @property
    def is_stale(self) -> bool:
        return self.age > DEAD_AFTER_S

    @property
    def is_alive(self) -> bool:
        """True if the driver may still run, as far as this process can tell."""
        return not self.is_stale and (self.namespace != pid_namespace() or psutil.pid_exists(self.pid))

    @property
    def is_of_other(self) -> bool:
        """True if another process wrote it and may still run."""
        return self.is_alive and (self.pid, self.namespace) != (os.getpid(), pid_namespace())


def pid_namespace() -> str:
    """Returns an id of this boot and container. Two processes with the same id share process numbers.

    Host names do not suffice: a container on the host's network has the host's name.
    """
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as boot:
        return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def store_time(folder: Directory) -> float:
    """Returns the time by the clock that stamps files in `folder`, in seconds since 1970.

    It writes a file, reads its modification time and removes it. If the folder takes no file, the function
    returns the time of this host.
    """
    name = f".time.{uuid.uuid4().hex}.tmp"
    try:
        folder.write(name, b"")
        info = folder.infos([f"{folder.path}/{name}"])[0]
        (folder / name).delete()
    except OutageError:
        raise
    except (OSError, InputError):
        return time.time()
    return time.time() if info.mtime_ns is None else info.mtime_ns / 1e9


def read_heartbeat(folder: Directory, name: str = HEARTBEAT) -> Heartbeat | None:
    """Returns None if there is no heartbeat or it is damaged: the next one is whole."""
    try:
        info = folder.infos([f"{folder.path}/{name}"])[0]
        if info.type != fs.FileType.File or info.mtime_ns is None:
            return None
        values = folder.read_json(name)
        age = max(0.0, store_time(folder) - info.mtime_ns / 1e9)
        return Heartbeat(age, int(values["pid"]), str(values["host"]), str(values["namespace"]))
    except OutageError:
        raise
    except (FileNotFoundError, ValueError, LookupError, TypeError):  # the first: just deleted
        return None


def is_dead(folder: Directory) -> bool:
    """Returns True if the driver of a run wrote no heartbeat for DEAD_AFTER_S."""
    found = read_heartbeat(folder)
    return found is None or found.is_stale


def write_heartbeat(folder: Directory, name: str = HEARTBEAT) -> None:
    values = {"pid": os.getpid(), "host": socket.gethostname(), "namespace": pid_namespace()}
    with contextlib.suppress(OSError, InputError):  # the driver's own work meets the same error
        folder.write_json(name, values)


@contextlib.contextmanager
def heartbeat(folder: Directory, name: str = HEARTBEAT) -> Generator[None]:
    """Write a heartbeat at once and every INTERVAL_S during the block; remove it at the end."""
    write_heartbeat(folder, name)
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(INTERVAL_S):
            write_heartbeat(folder, name)

    thread = threading.Thread(target=repeat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError, InputError):
            (folder / name).delete()


@contextlib.contextmanager
def exclusive(folder: Directory) -> Generator[None]:
    """Hold the lease on `folder` during the block. If another driver holds it, log who does, and wait.

    A lease without a heartbeat for DEAD_AFTER_S does not count. If its driver lives after all, both write the
    same bytes. Threads of one process share the lease.
    """
    own, is_reported = f".lease.{uuid.uuid4().hex}.tmp", False
    while True:
        if not (other := _other(folder, own)):
            with heartbeat(folder, own):
                if not (other := _other(folder, own)):
                    yield
                    return
        name, holder = other
        if not is_reported:
            place, is_reported = "/".join(folder.path.rsplit("/", 2)[-2:]), True
            _logger.warning(
                "%s: process %d on %s is at work on it, last heartbeat %.0f s ago; waiting for its result",
                *(place, holder.pid, holder.host, holder.age),
            )
        time.sleep(random.uniform(0.1, 1.0) * POLL_S)  # so that two drivers do not meet again
        while (found := read_heartbeat(folder, name)) and found.is_of_other:
            time.sleep(POLL_S)


def _other(folder: Directory, own: str) -> tuple[str, Heartbeat] | None:
    """Returns another driver's lease and its heartbeat; removes leases of dead drivers."""
    for name in folder.files():
        if LEASE.fullmatch(name) and name != own:
            found = read_heartbeat(folder, name)
            if found and found.is_of_other:
                return name, found
            if not found or not found.is_alive:
                (folder / name).delete()
    return None
