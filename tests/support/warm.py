"""Ray's worker processes, forked from one that has imported what they need: a start takes 0.2 s, not 8 s.

The raylet runs this file where it would run Ray's own `setup_worker.py`. The first that it runs leaves the
parent of all workers behind; each hands that parent its words, environment and standard streams, and ends.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

IMPORTS = (
    "ray.train.torch ray.train.v2._internal.execution.controller torch._dynamo "
    "diffusers.models.autoencoders.autoencoder_kl pydantic.v1 ray.dag "
    "ims3_ray.pipeline.steps ims3_ray.jobs.sweep.run"
)
ROOT = Path(__file__).parents[2]
REQUEST = 2**20  # bytes, at most


@contextlib.contextmanager
def workers():
    """A cluster that this process starts in the block has such workers."""
    import pytest
    from ray._private.parameter import RayParams

    plain = RayParams.__init__

    def init(self, *args, **options):
        plain(self, *args, **options)
        self.setup_worker_path = __file__

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RayParams, "__init__", init)
        patched.setenv("RAY_worker_register_timeout_seconds", "300")  # the first waits for the imports
        patched.setenv("RAY_worker_niceness", "0")
        yield


def _connection() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _ask(address: str, request: dict) -> None:
    with _connection() as line:
        while True:
            try:
                line.connect(address)
                break
            except ConnectionRefusedError:  # bound, and about to listen
                time.sleep(0.01)
        socket.send_fds(line, [json.dumps(request).encode()], [0, 1, 2])
        line.recv(1)


def _product():
    """The package's module of that name, by its path: the package itself defines actors as it is imported."""
    spec = importlib.util.spec_from_file_location("product", ROOT / "ims3_ray" / "cluster" / "fork_server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _serve(held: socket.socket, raylet: int) -> dict:
    """Fork for every request, until the raylet is gone; returns in the child, with the request."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # no CUDA here
    with _product().unseeded_actor_ids():
        for name in IMPORTS.split():
            with contextlib.suppress(Exception):  # which a worker that needs it tells
                importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    held.settimeout(1.0)
    while True:
        try:
            line, _ = held.accept()
        except TimeoutError:
            try:
                os.kill(raylet, 0)
            except ProcessLookupError:
                os._exit(0)
            continue
        with line:
            data, streams, *_ = socket.recv_fds(line, REQUEST, 3)
            if not os.fork():
                held.close()
                os.setsid()  # the raylet ends a worker's whole group
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for place, stream in enumerate(streams):
                    os.dup2(stream, place)
                    os.close(stream)
                return json.loads(data)
            for stream in streams:
                os.close(stream)


def _is_parent(address: str) -> socket.socket | None:
    """The parent's end of the line, in the parent alone, which is made here where there is none."""
    held = _connection()
    try:
        held.bind(address)
        held.listen(64)
    except OSError:
        held.close()
        return None
    if os.fork():
        held.close()
        return None
    os.setsid()
    return held


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context")
    parser.add_argument("--language")
    told, words = parser.parse_known_args()
    context = json.loads(told.serialized_runtime_env_context or "{}")
    while words[0] in ("-s", "-S"):
        del words[0]
    raylet = os.environ["RAY_RAYLET_PID"]
    address = f"\0workers-of-{raylet}"  # no file: gone with the parent
    if held := _is_parent(address):
        request = _serve(held, int(raylet))
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = request["words"]
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        environment = dict(os.environ) | context.get("env_vars", {})
        _ask(address, {"words": words, "env": environment, "cwd": os.getcwd()})


if __name__ == "__main__":
    main()
