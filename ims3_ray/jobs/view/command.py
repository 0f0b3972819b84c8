"""View the runs of a storage in a browser, also running ones.

    ims3 view
    ims3 view /data/runs --port 8500 --no-browser

The pages list, sort, filter and compare runs. A run's page shows its progress,
metrics, candidates, selection and images before and after refinement. The view
is read-only. The server listens on 127.0.0.1 only and requires the token in
the printed address; Ctrl-C stops it. From another machine, use an SSH tunnel:
ssh -L 8500:127.0.0.1:8500 HOST.
"""

import argparse
import os
import secrets
import socket
import sys
import webbrowser

from ims3_ray.config.load import load_config
from ims3_ray.errors import InputError
from ims3_ray.progress import print_line, spinner
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import Directory, check_format, open_directory

LOOPBACK = "127.0.0.1"
MAX_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("storage", nargs="?", metavar="STORAGE", help="the storage (default ./runs)")
    add("--port", type=int, default=0, metavar="N", help="port to listen on (default: a free one)")
    add("--no-browser", action="store_true", help="only print the address")


def run(arguments: argparse.Namespace) -> None:
    storage = find_storage(arguments.storage)
    with listen(arguments.port) as listener:
        with spinner("imports"):  # torch and MLflow take seconds
            import uvicorn

            from .app import make_app
            from .run_store import RunStore

            store = RunStore(storage)
            store.runs()  # fail here, not on every page, if MLflow cannot answer
        token = secrets.token_urlsafe(24)
        app = make_app(store, token)
        options = {"log_level": "warning", "access_log": False, "lifespan": "off"}
        server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **options))
        address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/?token={token}"
        print_line(f"view of {storage.uri}: {address}")
        if not arguments.no_browser and has_display():
            webbrowser.open(address)
        server.run([listener])
        raise KeyboardInterrupt  # only a signal stops the server, and uvicorn may swallow it


def has_display() -> bool:
    """Whether a browser can open a window; a text browser would take over the terminal."""
    return any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))) or sys.platform == "darwin"


def find_storage(name: str | None) -> Directory:
    """The storage from DIR or `storage=DIR`, else the default. Raises InputError if it has no runs."""
    path = (name or "").removeprefix("storage=")
    storage = open_directory(load_config("digits", {"storage": path} if path else {}).storage)
    if not check_format(storage):
        raise InputError(f"storage: {storage.uri} contains no runs; name another, such as ims3 view DIR")
    if not storage.is_local:
        tracking_uri(storage)  # a bucket needs MLFLOW_TRACKING_URI: fail here, not on every page
    return storage


def listen(port: int) -> socket.socket:
    """A listening socket on loopback; port 0 means a free one. Raises InputError for a port in use."""
    if not 0 <= port <= MAX_PORT:
        raise InputError(f"--port {port}: is not a port; use 0 to {MAX_PORT}")
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise InputError(
            f"--port {port}: cannot listen ({error.strerror}); use another port, or leave --port out"
        ) from error
