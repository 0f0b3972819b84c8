"""Workarounds for Ray 2.60, each with the reason, the issue if there is one, and the condition to remove it.

One more is in `fan_out.Worker`: it returns an InputError as a value, because Ray Data passes only the text of
an exception to the driver. Goes when Ray Data raises what the actor raised.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from functools import partialmethod
from typing import TYPE_CHECKING

import ray
from ray._private import ray_constants
from ray._private.parameter import RayParams

from ims3_ray.errors import InputError, is_termination

if TYPE_CHECKING:
    from .resources import Machine

# A pool that takes every whole CPU can hang after a node is lost. Goes with ray#44687.
CPUS_PER_ACTOR = 0.8
UV_RUN = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
ENVIRONMENT = {
    # Under `uv run` Ray would start each worker by uv, not as a fork. Goes with ray#50961.
    UV_RUN: "0",
    # Train reports wait for the controller's next poll, 2 s by default. Goes when a report wakes it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # If many tasks fail alike, Ray prints all errors but the first. Goes when ray.get collects them.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # A first worker imports torch and diffusers, which took 53 s on a loaded machine; Ray waits for 60.
    "RAY_worker_register_timeout_seconds": "300",
    # Actors without GPUs keep CUDA_VISIBLE_DEVICES: Ray warns that this becomes its default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
MAX_START_FAILURES = 3  # by default Ray Train waits forever for missing resources
START_TIMEOUT, START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", 60.0  # Ray's default
ADDRESS = "RAY_ADDRESS"
LOOPBACK = "127.0.0.1"


def set_environment() -> None:
    """Set Ray's variables before `ray.init`, unless the user has set them."""
    for name, value in (ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"}).items():
        os.environ.setdefault(name, value)
    # Ray has read this one on import
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool(UV_RUN, True)


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Let `ray.init` give a local node the address LOOPBACK, and its dashboard agent a free port.

    On Linux Ray replaces that address by the machine's own and listens on every interface; this is its switch
    for macOS and Windows. The agent would take the port that a later `ray start` needs for submitted jobs.
    Goes when Ray keeps `_node_ip_address` and `ray.init` takes the agent's port.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    initialise = RayParams.__init__
    RayParams.__init__ = partialmethod(initialise, dashboard_agent_listen_port=0)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, RayParams.__init__ = before, initialise


def errors_only(logger: str) -> None:
    """Silence warnings: `ray` warns of the token that it creates; `ray.data` sets its level on import."""
    logging.getLogger(logger).setLevel(logging.ERROR)


def restore_sigterm() -> None:
    """After `ray.init`, let SIGTERM raise SystemExit again, as Ray's Python handler does.

    Ray's C++ handler replaces it, prints the stack and aborts (exit code 134). Goes when Ray leaves SIGTERM
    to Python.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextlib.contextmanager
def patched_train(machine: "Machine") -> Iterator[None]:
    """Run Ray Train with working Ctrl-C, time for a cluster to grow, and its cleaner on this cluster."""
    with _interruptible(), _time_to_grow(machine), _in_this_cluster():
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt during the block and after it.

    Ray Train leaves its own handler behind, which ends the process as if it had succeeded. Goes when Ray
    restores the previous handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if is_termination(error):
            raise
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _time_to_grow(machine: "Machine") -> Iterator[None]:
    """Wait `workers.wait_s` for Train workers if the cluster grows (`workers.gpus`) or other trials may end.

    Raises InputError if they do not come. Goes when ScalingConfig has a timeout and its error is public.
    """
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    tries = 1 + MAX_START_FAILURES
    may_come = machine.workers.gpus or machine.runs_at_once > 1
    wait_s = machine.workers.wait_s / tries if may_come else START_TIMEOUT_S
    os.environ.setdefault(START_TIMEOUT, str(max(START_TIMEOUT_S, wait_s)))
    try:
        yield
    except ControllerError as error:
        if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise
        number, waited_s = error.controller_failure.num_workers, tries * float(os.environ[START_TIMEOUT])
        raise InputError(
            f"workers.train_workers: the cluster had no room for {number} at once within {waited_s:g} s; "
            "ask for fewer, let fine-tuning start with fewer by workers.min_train_workers, or add nodes; the "
            "same command resumes"
        ) from error


@contextlib.contextmanager
def _in_this_cluster() -> Iterator[None]:
    """Let Ray Train's cleaner, which checks every second that the controller lives, ask this run's cluster.

    Without RAY_ADDRESS it asks the latest `ray start` of its machine. If that cluster is gone, training ends
    12 s late. If it runs, it does not know the controller, and the cleaner releases the workers' resources.
    Goes when the cleaner gets the address.
    """
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE  # to the controller; not public

    ENV_VARS_TO_PROPAGATE.add(ADDRESS)
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        if before is not None:
            os.environ[ADDRESS] = before
