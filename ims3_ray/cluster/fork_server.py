"""Ray's workers on this machine, forked from a process that has imported what they need.

    python -P warm.py SOCKET                  that process, which ends with whoever started it
    python -S -E warm.py SOCKET PYTHON WORDS  what Ray starts in place of PYTHON, its `py_executable`

A worker that begins anew imports torch, diffusers and Ray for many seconds, at every stage; a fork has them.
Nothing here touches a GPU before the fork. Where there is no such process, PYTHON starts as ever.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

AT_ONCE = (
    *("torch._dynamo", "diffusers.models.autoencoders.autoencoder_kl"),
    *("ims3_ray.models.generator", "ims3_ray.models.extractor", "ims3_ray.evaluation.train"),
)
WITH_RAY = ("ims3_ray.pipeline.steps", "ray.train.torch")
NO_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # who asks for GPUs begins no CUDA, which no fork survives
REQUEST = 2**20  # bytes, at most
_started: list[tuple[str, subprocess.Popen[bytes]]] = []


def start() -> str:
    """The command by which Ray starts a worker; the process that they are forked from begins its imports."""
    if not hasattr(os, "fork") or not hasattr(socket, "SOCK_SEQPACKET"):
        return sys.executable
    if not _started or _started[0][1].poll() is not None:
        address = f"{tempfile.mkdtemp(prefix='ims3-')}/workers"  # in a folder that is this user's alone
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | NO_CUDA  # one thread: as Ray has it for a CPU
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        words = [sys.executable, "-P", os.path.abspath(__file__), address]
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,  # whose end says that nobody is left to fork for
            stdout=subprocess.DEVNULL,  # a fork has its worker's own
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        _started[:] = [(address, process)]
    return shlex.join([sys.executable, "-S", "-E", os.path.abspath(__file__), _started[0][0], sys.executable])


def serve(address: str) -> dict[str, list[str]]:
    """Fork for every request, until whoever started this is gone; returns in the child, with the request.

    Ray is imported at the first: it reads its cluster's settings from the environment as it is imported.
    """
    with _connection() as held:
        held.bind(address)
        held.listen(256)
        _import(AT_ONCE)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            if sys.stdin in select.select([held, sys.stdin], [], [])[0]:
                shutil.rmtree(os.path.dirname(address), ignore_errors=True)
                os._exit(0)
            line, _ = held.accept()
            with line:
                data, streams, *_ = socket.recv_fds(line, REQUEST, 3)
                request = json.loads(data)
                if "ray" not in sys.modules:
                    os.environ.update(_environment(request))
                    with own_randomness():
                        _import(WITH_RAY)
                if not os.fork():
                    os.setsid()  # the raylet ends a worker's whole group
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for place, stream in enumerate(streams):
                        os.dup2(stream, place)
                        os.close(stream)
                    return request
                for stream in streams:
                    os.close(stream)


def ask(address: str, python: str, words: list[str]) -> None:
    """Have a worker forked; without anybody to ask this process becomes one."""
    request = {"words": words, "cwd": [os.getcwd()], "env": [f"{k}={v}" for k, v in os.environ.items()]}
    try:
        with _connection() as line:
            line.connect(address)
            socket.send_fds(line, [json.dumps(request).encode()], [0, 1, 2])
            line.recv(1)
    except OSError:
        os.execv(python, [python, *words])


def become(request: dict[str, list[str]]) -> None:
    """This process, a fork, is the worker from here on."""
    os.environ.clear()
    os.environ.update(_environment(request))
    os.chdir(request["cwd"][0])
    sys.argv = request["words"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


def _environment(request: dict[str, list[str]]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in request["env"])


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # which a worker that needs it tells
            importlib.import_module(name)


def _connection() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Ray's random numbers begin in the workers: begun here, all workers would draw the same ids.

    An actor's class draws an id when it is defined; two workers of one random state fail as they start at
    the same time ("WarmupStore() Status not OK: ObjectExists"). Goes when Ray forgets its state in a fork.
    """
    from ray import actor

    real = actor.ActorClassID

    class Drawn:
        @staticmethod
        def from_random() -> object:
            return real(os.urandom(real.size()))

    actor.ActorClassID = Drawn
    try:
        yield
    finally:
        actor.ActorClassID = real


if __name__ == "__main__":
    if len(sys.argv) == 2:
        become(serve(sys.argv[1]))
    else:
        ask(sys.argv[1], sys.argv[2], sys.argv[3:])
