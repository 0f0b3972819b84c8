"""Say what of this machine works, and which recipes could run here.

    ims3 doctor
    ims3 doctor storage=/data/runs

A line each: what, its state, and what was seen; where something is wrong, the
remedy. Ray is not started, and nothing is written. Exit code 2 where no run
could work.
"""

import argparse
import os
import platform
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

import psutil

from ims3_ray.config.load import load_config, parse_overrides, recipe_names
from ims3_ray.display import first_few, format_bytes, one_line, redact_uris
from ims3_ray.errors import InputError
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import open_directory

from .recipes import hardware

OK, NONE, MISSING = "ok", "none", "missing"  # none: not there, and a run works without it
ANSWER_S = 3.0  # for whoever is asked through a network
LEAST_MEMORY, LEAST_SHM, LEAST_DISK = 4e9, 1e9, 1e9  # bytes: below them the digits do not get through
BF16 = 8.0  # CUDA's compute capability from which on
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")


class Finding(NamedTuple):
    what: str
    state: str
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="storage=DIR", help="where runs go (default ./runs)")


def run(arguments: argparse.Namespace) -> None:
    overrides = parse_overrides(arguments.overrides)
    if unknown := set(overrides) - {"storage"}:
        raise InputError(f"{', '.join(sorted(unknown))}: not known here; only storage=DIR is")
    findings = []
    for finding in look(load_config("digits", overrides).storage):
        print(f"{finding.what:<10} {finding.state:<8} {one_line(finding.detail)}", flush=True)
        findings.append(finding)
    if wrong := [finding.what for finding in findings if finding.state == MISSING]:
        raise InputError(f"no run could work here: {', '.join(wrong)}; the lines above name the remedies")


def look(storage: str) -> Iterator[Finding]:
    """A finding each."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("ims3-ray", "torch", "ray"))
    yield Finding("versions", OK, f"Python {platform.python_version()}, {versions}")
    devices = gpus()
    yield devices
    memory = psutil.virtual_memory().total
    yield _enough("memory", memory, LEAST_MEMORY, "of this machine", "take a larger one")
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        yield _enough("/dev/shm", free, LEAST_SHM, "free", "docker run --shm-size=4g, or empty it")
    yield of_storage(storage)
    yield tracking(storage)
    yield hub()
    yield cluster()
    yield recipes(has_gpu=devices.state == OK)


def gpus() -> Finding:
    """As the driver says, which takes no second; torch's own look takes several."""
    cpus = f"{os.cpu_count()} CPU cores"
    if not shutil.which(QUERY[0]):
        return Finding("GPU", NONE, f"{cpus}; for the recipes that need one, a machine with NVIDIA's driver")
    asked = subprocess.run(QUERY, capture_output=True, text=True, timeout=20)
    if asked.returncode or not asked.stdout.strip():
        return Finding(
            "GPU", NONE, f"{cpus}; nvidia-smi fails: {asked.stdout or asked.stderr}; mend the driver"
        )
    if version("torch").endswith("+cpu"):
        return Finding("GPU", NONE, f"{cpus}; torch is built without CUDA: pip install torch from PyPI")
    cards = [line.split(", ") for line in asked.stdout.strip().splitlines()]
    told = (
        f"{name} {format_bytes(float(memory) * 2**20)} {'bf16' if float(capability) >= BF16 else 'no bf16'}"
        for name, memory, capability in cards
    )
    return Finding("GPU", OK, f"{first_few(told, 8, str)}; {cpus}")


def of_storage(location: str) -> Finding:
    """Room, and the right to write, where runs would go; an object store is asked whether it is there."""
    try:
        folder = open_directory(location)
        if not folder.is_local:
            _ = folder.kind
            return Finding("storage", OK, f"{folder.uri} answers")
    except (InputError, OSError) as error:
        return Finding("storage", MISSING, f"{error}; name another: storage=DIR")
    there = next(place for place in (Path(folder.path), *Path(folder.path).parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Finding("storage", MISSING, f"{there} can't be written; name another: storage=DIR")
    free = shutil.disk_usage(there).free
    return _enough("storage", free, LEAST_DISK, f"free for {folder.path}", "make room, or storage=DIR")


def tracking(storage: str) -> Finding:
    """Whether a server that is named answers."""
    try:
        uri = tracking_uri(open_directory(storage))
    except InputError as error:
        return Finding("MLflow", MISSING, str(error))
    address = urlsplit(uri)
    told = redact_uris(uri)
    if address.scheme not in ("http", "https") or (why := _unanswered(uri)) is None:
        return Finding("MLflow", OK, told)
    return Finding(
        "MLflow", MISSING, f"{told} does not answer ({why}); start it, or unset MLFLOW_TRACKING_URI"
    )


def hub() -> Finding:
    """The Hugging Face hub; its token is never shown."""
    from huggingface_hub import constants, get_token

    token = "with a token" if get_token() else "no token: HF_TOKEN or `hf auth login`, to push"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", NONE, f"HF_HUB_OFFLINE is set; {token}")
    if why := _unanswered(constants.ENDPOINT):
        remedy = "name local folders, or check the network and HF_ENDPOINT"
        return Finding("hub", NONE, f"{constants.ENDPOINT} does not answer ({why}): {remedy}; {token}")
    return Finding("hub", OK, f"{constants.ENDPOINT}; {token}")


def cluster() -> Finding:
    """Whether the head at RAY_ADDRESS takes connections."""
    address = os.environ.get("RAY_ADDRESS")
    if not address or address in ("auto", "local"):
        return Finding("cluster", NONE, "RAY_ADDRESS is not set: a run starts Ray on this machine")
    if why := _within(lambda: _connect(address)):
        remedy = "start it there (ray start --head), or unset RAY_ADDRESS"
        return Finding("cluster", MISSING, f"nobody answers at {address} ({why}); {remedy}")
    return Finding("cluster", OK, address)


def recipes(*, has_gpu: bool) -> Finding:
    """Those whose stated hardware is here."""
    fitting = [name for name in recipe_names() if has_gpu or "GPU" not in hardware(name)]
    more = "" if has_gpu else "; the others need a GPU"
    return Finding(
        "recipes", OK, f"{first_few(fitting, 20, str)}{more}; ims3 distill --dry-run tells their cost"
    )


def _enough(what: str, there: float, least: float, of: str, remedy: str) -> Finding:
    if there >= least:
        return Finding(what, OK, f"{format_bytes(there)} {of}")
    return Finding(
        what, MISSING, f"{format_bytes(there)} {of}, and a run takes {format_bytes(least)}: {remedy}"
    )


def _unanswered(url: str) -> str | None:
    """Why nobody answers there, through the environment's proxies."""
    return _within(lambda: _open(url))


def _open(url: str) -> None:
    with suppress(HTTPError):  # which is an answer
        urllib.request.build_opener().open(url, timeout=ANSWER_S).close()  # of today's proxies


def _connect(address: str) -> None:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    socket.create_connection((parts.hostname or "", parts.port or 0), ANSWER_S).close()


def _within(reach: Callable[[], object]) -> str | None:
    """Why it fails, or does not end in time: names are looked up without any limit."""
    failed = [f"nothing within {2 * ANSWER_S:g} s"]

    def try_it() -> None:
        try:
            reach()
            failed.clear()
        except (OSError, ValueError) as error:
            failed[0] = str(getattr(error, "reason", error))

    tried = threading.Thread(target=try_it, daemon=True)
    tried.start()
    tried.join(2 * ANSWER_S)
    return failed[0] if failed else None
