"""Check this machine, and list the recipes with what each needs.

    ims3 doctor
    ims3 doctor storage=/data/runs
    ims3 doctor --show imagewoof       print a recipe, to start your own from

Prints a line per check: name, state, details and, if something is wrong, the
remedy. Then each recipe: whether it fits this machine, its time, model and
protocol. Ray is not started and nothing is written. Exit code 2 if no run can
work here.
"""

import argparse
import os
import platform
import re
import shutil
import socket
import subprocess
import textwrap
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import distribution, version
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

from ims3_ray.config.allocation import granted_cpus, granted_memory
from ims3_ray.config.load import load_config, recipe_names, recipe_text, storage_override
from ims3_ray.display import first_few, format_bytes, one_line, redact_uris
from ims3_ray.errors import InputError
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.storage.artifacts import open_directory

OK, NONE, MISSING = "ok", "none", "missing"  # none: absent, but not needed for a run
TIMEOUT_S = 3.0  # per network request
MIN_MEMORY, MIN_SHM, MIN_DISK = 4e9, 1e9, 1e9  # bytes that the recipe digits needs
BF16_CAPABILITY = 8.0  # minimum CUDA compute capability
QUERY = (
    *("nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version"),
    "--format=csv,noheader,nounits",
)
# major CUDA version of a torch build → oldest driver (NVIDIA, CUDA compatibility, minor versions)
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}
REINSTALL = "uv pip install --torch-backend auto --reinstall torch torchvision"
WIDTH = 80


class Check(NamedTuple):
    name: str
    state: str
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show", metavar="NAME", help="print this recipe as YAML, and check nothing")
    parser.add_argument("overrides", nargs="*", metavar="storage=DIR", help="default ./runs")


def run(arguments: argparse.Namespace) -> None:
    overrides = storage_override(arguments.overrides)
    if arguments.show is not None:
        print(recipe_text(arguments.show)[1], end="")
        return
    checks = []
    for check in run_checks(load_config("digits", overrides).storage):
        print(f"{check.name:<10} {check.state:<8} {one_line(check.detail)}", flush=True)
        checks.append(check)
    has_gpu = any(check.name == "GPU" and check.state == OK for check in checks)
    print("", *recipe_table(has_gpu, granted_memory()), sep="\n")
    if missing := [check.name for check in checks if check.state == MISSING]:
        raise InputError(f"no run can work here: {', '.join(missing)}; see the remedies above")


def run_checks(storage: str) -> Iterator[Check]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("ims3-ray", "torch", "ray"))
    yield Check("versions", OK, f"Python {platform.python_version()}, {versions}")
    yield check_gpus()
    memory = granted_memory()
    yield _check_bytes("memory", memory, MIN_MEMORY, "in total", "use a larger machine")
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        yield _check_bytes("/dev/shm", free, MIN_SHM, "free", "docker run --shm-size=4g, or empty it")
    yield check_storage(storage)
    yield check_tracking(storage)
    yield check_hub()
    yield check_cluster()


def check_gpus() -> Check:
    """Asks nvidia-smi, since importing torch takes seconds."""
    cpus = f"{granted_cpus()} CPU cores"
    if not shutil.which(QUERY[0]):
        return Check("GPU", NONE, f"{cpus}; recipes for a GPU need NVIDIA's driver")
    is_known, output = _ask_driver(*QUERY)
    if not is_known:
        return Check("GPU", NONE, f"{cpus}; nvidia-smi fails: {output}; repair the driver")
    if (cuda := _torch_cuda()) is None:
        return Check("GPU", NONE, f"{cpus}; torch is built without CUDA: {REINSTALL}")
    gpus, driver = [], ""
    for line in output.splitlines():
        name, mebibytes, capability, driver = line.split(", ")
        bf16 = "bf16" if float(capability) >= BF16_CAPABILITY else "no bf16"
        size = f" {format_bytes(float(mebibytes) * 2**20)}" if mebibytes.isdecimal() else ""  # "[N/A]"
        gpus.append(f"{name}{size} {bf16}")
    oldest = OLDEST_DRIVER.get(cuda.partition(".")[0], 0)
    if int(driver.partition(".")[0]) < oldest:
        needs = f"driver {driver}, torch's CUDA {cuda} needs {oldest}"
        return Check("GPU", NONE, f"{cpus}; {needs}: update the driver, or {REINSTALL}")
    links = [_links()] if len(gpus) > 1 else []
    facts = [first_few(gpus, 8, str), *links, f"driver {driver}", f"CUDA {cuda}", cpus]
    return Check("GPU", OK, "; ".join(facts))


def _ask_driver(*words: str) -> tuple[bool, str]:
    """Whether the command answers, and its output or error."""
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False, "no answer in 20 s"
    output = answer.stdout.strip()
    return bool(output) and answer.returncode == 0, output or answer.stderr.strip()


def _torch_cuda() -> str | None:
    """The CUDA version that torch is built for; None if it is built without. Read from torch's own file."""
    file = Path(str(distribution("torch").locate_file("torch/version.py")))
    built = re.search(r"^cuda\b.*'([\d.]+)'", file.read_text(), re.M)
    return built and built[1]


def _links() -> str:
    """Whether NVLink connects GPUs; `nvidia-smi topo -m` calls a connection of n links NVn."""
    _, matrix = _ask_driver(QUERY[0], "topo", "-m")
    return "NVLink" if re.search(r"\bNV\d+\b", matrix) else "no NVLink"


def check_storage(location: str) -> Check:
    """Space and write permission of a local storage; existence of an object store's bucket."""
    try:
        folder = open_directory(location)
        if not folder.is_local:
            _ = folder.kind
            return Check("storage", OK, f"{folder.uri} answers")
    except (InputError, OSError) as error:
        return Check("storage", MISSING, f"{error}; name another: storage=DIR")
    parent = next(place for place in (Path(folder.path), *Path(folder.path).parents) if os.path.exists(place))
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        return Check("storage", MISSING, f"{parent} is not writable; name another: storage=DIR")
    free = shutil.disk_usage(parent).free
    return _check_bytes("storage", free, MIN_DISK, f"free for {folder.path}", "free space, or storage=DIR")


def check_tracking(storage: str) -> Check:
    """Whether the MLflow server answers, if there is one."""
    try:
        uri = tracking_uri(open_directory(storage))
    except InputError as error:
        return Check("MLflow", MISSING, str(error))
    address = redact_uris(uri)
    if urlsplit(uri).scheme not in ("http", "https") or (reason := _http_failure(uri)) is None:
        return Check("MLflow", OK, address)
    remedy = "start it, or unset MLFLOW_TRACKING_URI"
    return Check("MLflow", MISSING, f"{address} does not answer ({reason}); {remedy}")


def check_hub() -> Check:
    """Whether the Hugging Face hub answers. Never prints the token."""
    from huggingface_hub import constants, get_token

    token = "with a token" if get_token() else "no token: HF_TOKEN or `hf auth login`, to push"
    if constants.HF_HUB_OFFLINE:
        return Check("hub", NONE, f"HF_HUB_OFFLINE is set; {token}")
    if reason := _http_failure(constants.ENDPOINT):
        remedy = "name local folders, or check the network and HF_ENDPOINT"
        return Check("hub", NONE, f"{constants.ENDPOINT} does not answer ({reason}): {remedy}; {token}")
    return Check("hub", OK, f"{constants.ENDPOINT}; {token}")


def check_cluster() -> Check:
    """Whether the head node at RAY_ADDRESS accepts connections."""
    address = os.environ.get("RAY_ADDRESS")
    if not address or address in ("auto", "local"):
        return Check("cluster", NONE, "RAY_ADDRESS names no machine: a run uses Ray on this one")
    if reason := _failure(lambda: _connect(address)):
        remedy = "start it there (ray start --head), or unset RAY_ADDRESS"
        return Check("cluster", MISSING, f"no answer from {address} ({reason}); {remedy}")
    return Check("cluster", OK, address)


def recipe_table(has_gpu: bool, memory: float) -> Iterator[str]:
    """Lines per recipe: name, fit and time; images, model, protocol and IPC; the header's first sentence."""
    for name in recipe_names():
        config, header = load_config(name), _header(name)
        hardware, fits = _stated(header, "Hardware"), "fits this machine"
        if "GPU" in hardware and not has_gpu:
            fits = "needs a GPU"
        elif (needed := re.search(r"(\d+) GB", hardware)) and memory < 0.9e9 * int(needed[1]):
            fits = f"needs {needed[0]} of memory"
        time = _stated(header, "Time(?: and memory)?").removesuffix(" (measured)")
        classes = config.data.classes
        images = config.data.train or (f"{len(classes)} classes" if classes else "data.train=DIR")
        facts = f"{images}; {config.model.path}; protocol {config.evaluate.protocol}; IPC {config.ipc}"
        yield f"{name:<20} {fits}; time: {time}"
        for text in (facts, header.partition(". ")[0] + "."):
            yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _header(recipe: str) -> str:
    """The comment at the top of a recipe, on one line."""
    comment = re.findall(r"\A(?:#.*\n)+", recipe_text(recipe)[1])[0]
    return " ".join(comment.replace("#", " ").split())


def _stated(header: str, label: str) -> str:
    return re.findall(rf"{label}: (.*?)[.;] ", header)[0]


def _check_bytes(name: str, size: float, minimum: float, of: str, remedy: str) -> Check:
    if size >= minimum:
        return Check(name, OK, f"{format_bytes(size)} {of}")
    return Check(name, MISSING, f"{format_bytes(size)} {of}, a run needs {format_bytes(minimum)}: {remedy}")


def _http_failure(url: str) -> str | None:
    """Why the server does not answer; None if it does. Uses the environment's proxies."""
    return _failure(lambda: _open(url))


def _open(url: str) -> None:
    with suppress(HTTPError):  # an answer too
        urllib.request.build_opener().open(url, timeout=TIMEOUT_S).close()  # reads proxies now


def _connect(address: str) -> None:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT_S).close()


def _failure(attempt: Callable[[], object]) -> str | None:
    """Why `attempt` fails; None if it succeeds. In a thread, since name resolution has no timeout."""
    reasons = [f"nothing within {2 * TIMEOUT_S:g} s"]

    def target() -> None:
        try:
            attempt()
            reasons.clear()
        except (OSError, ValueError) as error:
            reasons[0] = str(getattr(error, "reason", error))

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(2 * TIMEOUT_S)
    return reasons[0] if reasons else None
