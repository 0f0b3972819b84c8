"""Look at the runs of a storage in a browser, also while they go.

    ims3 view
    ims3 view /data/runs --port 8500 --no-browser

A page lists the runs, sorts and filters them; two are compared; a run's page
follows it while it goes, and shows its figures and images: what was drawn,
what was chosen, what refinement made of it. No run is changed. The server
listens on this machine alone, to whoever has the token of the address that is
printed; Ctrl-C ends it. From elsewhere: ssh -L 8500:127.0.0.1:8500 HOST.
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
LARGEST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("storage", nargs="?", metavar="STORAGE", help="where the runs are (default ./runs)")
    add("--port", type=int, default=0, metavar="N", help="the port to listen on (default: a free one)")
    add("--no-browser", action="store_true", help="print the address and open nothing")


def run(arguments: argparse.Namespace) -> None:
    storage = find_storage(arguments.storage)
    with listen(arguments.port) as listener:
        with spinner("imports"):  # heavy: torch, MLflow
            import uvicorn

            from .app import make_app
            from .run_store import Catalogue

            catalogue = Catalogue(storage)
            catalogue.runs()  # what MLflow can't answer is refused here, and not on every page
        token = secrets.token_urlsafe(24)
        app = make_app(catalogue, token)
        options = {"log_level": "warning", "access_log": False, "lifespan": "off"}
        server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **options))
        address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/?token={token}"
        print_line(f"{storage.uri} is shown at {address}")
        if not arguments.no_browser and has_screen():
            webbrowser.open(address)
        server.run([listener])
        raise KeyboardInterrupt  # a signal alone ends it, which uvicorn was seen to keep to itself


def has_screen() -> bool:
    """Whether a browser would have a window: in a terminal it would take that."""
    return any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))) or sys.platform == "darwin"


def find_storage(given: str | None) -> Directory:
    """The storage that was named, also as `storage=DIR`, else the default. InputError where there is none."""
    place = (given or "").removeprefix("storage=")
    storage = open_directory(load_config("digits", {"storage": place} if place else {}).storage)
    if not check_format(storage):
        raise InputError(f"storage: {storage.uri} holds no runs; name another, as ims3 view DIR")
    if not storage.is_local:
        tracking_uri(storage)  # which a bucket can't hold: refused here, and not on every page
    return storage


def listen(port: int) -> socket.socket:
    """A socket on loopback, at a free port for 0. InputError for one that is in use, or none."""
    if not 0 <= port <= LARGEST_PORT:
        raise InputError(f"--port {port}: is none; name one up to {LARGEST_PORT}, or leave it out")
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise InputError(
            f"--port {port}: can't be listened on ({error.strerror}); name another, or leave it out"
        ) from error
