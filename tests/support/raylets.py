"""Nodes of a Ray cluster as `ray start --block` makes them, each a process that ends with the block that
began it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

OBJECT_STORE = 80 * 2**20  # bytes a node
STARTED_S = 120
RAY = Path(sys.executable).parent / "ray"
OWN_DISK = (  # words: a folder to see still, a folder to find empty, a command
    'mount --bind "$0" /mnt && mount -t tmpfs tmpfs "$1" && mkdir -p "$0" && mount --bind /mnt "$0" '
    '&& shift && exec "$@"'
)


def can_have_own_disk() -> bool:
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def own_address() -> str:
    return socket.gethostbyname(socket.gethostname())


def guarded(env: dict[str, str]) -> dict[str, str]:
    """`env` with a token of its own: Ray's ports listen on every interface."""
    return env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}


@contextlib.contextmanager
def node(
    *words: str, env: dict[str, str], log: Path, hidden: Path | None = None, seen: Path | None = None
) -> Iterator[subprocess.Popen]:
    """A node by `ray start WORDS`; `hidden` is an empty disk of its own there, but for the folder `seen`
    below it.
    """
    command = [RAY, "start", "--block", f"--object-store-memory={OBJECT_STORE}", *words]
    if hidden:
        command = ["unshare", "-rm", "bash", "-c", OWN_DISK, seen, hidden, *command]
    with log.open("w") as stream:
        started = subprocess.Popen(command, env=env, stdout=stream, stderr=stream, start_new_session=True)
    try:
        until = time.monotonic() + STARTED_S
        # two that start at the same time disturb each other
        while "Ray runtime started" not in log.read_text():
            assert (started.poll(), time.monotonic() < until) == (None, True), log.read_text()[-2000:]
            time.sleep(0.2)
        yield started
        assert started.poll() in (None, -signal.SIGKILL), log.read_text()[-2000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)


@contextlib.contextmanager
def head(env: dict[str, str], folder: Path) -> Iterator[str]:
    """A head node without CPUs; gives its address."""
    port = free_port()
    with node(
        "--head",
        "--num-cpus=0",
        f"--port={port}",
        f"--dashboard-port={free_port()}",
        env=env,
        log=folder / "head.log",
    ):
        yield f"{own_address()}:{port}"
