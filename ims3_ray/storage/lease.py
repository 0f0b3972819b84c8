"""A lease on a folder: one driver at a time makes what several drivers would make.

Each driver writes a lease file of its own name and then lists the folder. A driver that sees another's
lease withdraws its own and waits. If two start together, at least one withdraws, since the driver that writes
second lists both. This needs no lock, only that a list shows what was written before, as it does on local
disks, NFS and S3.

Conditional writes are not used. pyarrow 25 drops the header that S3 needs (If-None-Match). They would not
make the rule simpler either: a lease of one fixed name has to be taken over if its driver died, and two
drivers that see it dead could each remove the other's new lease.
"""

import contextlib
import logging
import random
import re
import time
import uuid
from collections.abc import Generator

from .directory import Directory
from .heartbeat import Heartbeat, heartbeat, read_heartbeat

LEASE = re.compile(r"\.lease\.[0-9a-f]{32}\.tmp")  # no artefact's manifest names a file that ends so
POLL_S = 2.0  # at most, between looks at another's lease
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive(folder: Directory) -> Generator[None]:
    """Hold the lease on `folder` during the block; wait for it first, with a line that says who holds it.

    A lease without a heartbeat for DEAD_AFTER_S is not waited for. If its driver lives after all, both make
    the same bytes. Threads of one process share the lease.
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
                "%s: process %d on %s is at work on it, last heartbeat %.0f s ago; waiting for what it makes",
                *(place, holder.pid, holder.host, holder.age),
            )
        time.sleep(random.uniform(0.1, 1.0) * POLL_S)  # two that saw each other do not meet again
        while (found := read_heartbeat(folder, name)) and found.is_of_other:
            time.sleep(POLL_S)


def _other(folder: Directory, own: str) -> tuple[str, Heartbeat] | None:
    """Another driver's lease and its heartbeat. Leases of dead drivers are removed."""
    for name in folder.files():
        if LEASE.fullmatch(name) and name != own:
            found = read_heartbeat(folder, name)
            if found and found.is_of_other:
                return name, found
            if not found or not found.is_alive:
                (folder / name).delete()
    return None
