"""Start Ray's workers on this machine by forking a process that has imported torch, diffusers and Ray.

    python -P fork_server.py SOCKET                  the server; it ends with the driver
    python -S -E fork_server.py SOCKET PYTHON WORDS  the client, which Ray starts as its `py_executable`

Without it, each worker spends many seconds on imports, in every stage. The server touches no GPU before it
forks. If the server is gone, the client becomes PYTHON.
"""

import contextlib
import gc
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

PRELOADED = (
    *("torch._dynamo", "diffusers.models.autoencoders.autoencoder_kl"),
    *("ims3_ray.models.generator", "ims3_ray.models.extractor", "ims3_ray.evaluation.train"),
)
PRELOADED_WITH_RAY = ("ims3_ray.pipeline.steps", "ray.train.torch", "ray.dag", "pydantic.v1")
NO_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # asking for GPUs starts no CUDA, which would break forks
NVIDIA_DRIVER = "/dev/nvidiactl"  # exists where a GPU may be used
MAX_REQUEST = 2**20  # bytes
REFUSED = b"n"
_started: list[tuple[str, subprocess.Popen[bytes]]] = []


def start() -> str:
    """Start the server, unless it runs, and return the command with which Ray starts a worker.

    No server runs beside a GPU, where forks are *not yet measured*, or with IMS3_FORK_WORKERS=0.
    """
    is_off = os.environ.get("IMS3_FORK_WORKERS") == "0" or os.path.exists(NVIDIA_DRIVER)
    if is_off or not hasattr(os, "fork") or not hasattr(socket, "SOCK_SEQPACKET"):
        return sys.executable
    if not _started or _started[0][1].poll() is not None:
        address = f"{tempfile.mkdtemp(prefix='ims3-')}/workers"  # in a folder that only this user can enter
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | NO_CUDA  # Ray's default for CPU workers
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        words = [sys.executable, "-P", os.path.abspath(__file__), address]
        reader, _ = os.pipe()  # closes when the driver ends
        process = subprocess.Popen(
            words,
            stdin=reader,
            stdout=subprocess.DEVNULL,  # a fork uses its worker's own streams
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        os.close(reader)
        _started[:] = [(address, process)]
    return shlex.join([sys.executable, "-S", "-E", os.path.abspath(__file__), _started[0][0], sys.executable])


def serve(address: str) -> dict[str, list[str]]:
    """Fork for each request until the driver ends; returns, in the child only, with the request.

    Ray is imported at the first request: it reads its cluster's settings from the environment on import.
    """
    with _socket() as listener:
        listener.bind(address)
        listener.listen(256)
        _import(PRELOADED)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                shutil.rmtree(os.path.dirname(address), ignore_errors=True)
                os._exit(0)
            connection, _ = listener.accept()
            with connection:
                data, streams, *_ = socket.recv_fds(connection, MAX_REQUEST, 3)
                request = json.loads(data)
                if "ray" not in sys.modules:
                    os.environ.update(_environment(request))
                    with unseeded_actor_ids():
                        _import(PRELOADED_WITH_RAY)
                if _has_cuda():
                    connection.send(REFUSED)
                elif not os.fork():
                    os.setsid()  # the raylet kills a worker's whole process group
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for descriptor, stream in enumerate(streams):
                        os.dup2(stream, descriptor)
                        os.close(stream)
                    return request
                for stream in streams:
                    os.close(stream)


def request_fork(address: str, python: str, words: list[str]) -> None:
    """Ask the server for a worker. If it refuses or does not answer, this process becomes the worker."""
    request = {"words": words, "cwd": [os.getcwd()], "env": [f"{k}={v}" for k, v in os.environ.items()]}
    try:
        with _socket() as connection:
            connection.connect(address)
            socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
            is_refused = connection.recv(1) == REFUSED
    except OSError:
        is_refused = True
    if is_refused:
        os.execv(python, [python, *words])


def run_worker(request: dict[str, list[str]]) -> None:
    """Run Ray's worker script in this forked process."""
    os.environ.clear()
    os.environ.update(_environment(request))
    os.chdir(request["cwd"][0])
    sys.argv = request["words"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


def _environment(request: dict[str, list[str]]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in request["env"])


def _has_cuda() -> bool:
    """Whether this process has started CUDA, which does not survive a fork."""
    torch = sys.modules.get("torch")
    return bool(torch and torch.cuda.is_initialized())


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # a worker that needs the module raises the error
            importlib.import_module(name)
    gc.freeze()  # else each fork copies the modules' pages in its first collections


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextlib.contextmanager
def unseeded_actor_ids() -> Iterator[None]:
    """Define actor classes without seeding Ray's random numbers, which all forks would share.

    A class draws an id on definition. Two workers with the same random state fail if they start together
    ("WarmupStore() Status not OK: ObjectExists"). Goes when Ray resets its random state in a fork.
    """
    from ray import actor

    real = actor.ActorClassID

    class RandomID:
        @staticmethod
        def from_random() -> object:
            return real(os.urandom(real.size()))

    actor.ActorClassID = RandomID
    try:
        yield
    finally:
        actor.ActorClassID = real


if __name__ == "__main__":
    if len(sys.argv) == 2:
        run_worker(serve(sys.argv[1]))
    else:
        request_fork(sys.argv[1], sys.argv[2], sys.argv[3:])
