"""What Ray 2.60 needs that it should not: each with its issue, or with what was seen, and when it can go.

One more stands where it acts: `fan_out.Worker` gives an InputError as a value, since of an exception Ray Data
brings the driver no more than the text. It can go when Ray Data raises what the actor raised.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ray
from ray._private import ray_constants

from ims3_ray.errors import InputError

if TYPE_CHECKING:
    from .resources import Machine

# A pool that takes every whole CPU can hang after a node is lost. Goes with ray#44687.
CPUS_PER_ACTOR = 0.8
UV_RUN = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
ENVIRONMENT = {
    # A driver under `uv run` would start every worker by it, anew and not as a fork. Goes with ray#50961.
    UV_RUN: "0",
    # Reports of a training wait for the controller's next look, else 2 s apart. Goes when they wake it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Where many tasks fail alike, each error but the first would be printed. Goes when ray.get hears of all.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # An actor without GPUs keeps what the driver sees of them: a warning's advice, and Ray's default to come.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
MAX_START_FAILURES = 3  # Ray Train's default waits for ever for resources that never come
START_TIMEOUT, START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", 60.0  # Ray's own
ADDRESS = "RAY_ADDRESS"
LOOPBACK = "127.0.0.1"


def set_environment() -> None:
    """Before `ray.init`, as far as nobody chose otherwise."""
    for name, value in (ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"}).items():
        os.environ.setdefault(name, value)
    # this one Ray has read already, as it was imported
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool(UV_RUN, True)


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Around `ray.init` of a local cluster: its node may have the address LOOPBACK.

    All of Ray's servers then listen there and nowhere else. On Linux Ray replaces that address by the
    machine's own, and its servers listen on every interface; this is its switch for macOS and Windows. Goes
    when Ray takes `_node_ip_address` as it is.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def errors_only(logger: str) -> None:
    """Errors alone: `ray` warns at init of the token that it makes; `ray.data` sets its level on import."""
    logging.getLogger(logger).setLevel(logging.ERROR)


def keep_sigterm() -> None:
    """After `ray.init`: SIGTERM raises SystemExit, as Ray's handler in Python has it.

    Ray's C++ lays its own over that, which dumps the stack and aborts (exit code 134). Goes when it leaves
    SIGTERM to Python.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextlib.contextmanager
def patched_train(machine: "Machine") -> Iterator[None]:
    """Around Ray Train: Ctrl-C, a cluster that grows, another cluster on the same machine."""
    with _interruptible(), _time_to_grow(machine), _in_this_cluster():
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, in the block and after it.

    Ray Train's own handler stays when it is done, and ends a process as done. Goes when it puts back what was
    there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:  # somebody ended the process
            raise
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _time_to_grow(machine: "Machine") -> Iterator[None]:
    """A cluster that grows (`workers.gpus`) gets `workers.wait_s` to bring the workers' places, each time.

    InputError where they do not come. Goes when the time is a setting of ScalingConfig, and its error public.
    """
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    tries = 1 + MAX_START_FAILURES
    wait_s = machine.workers.wait_s / tries if machine.workers.gpus else START_TIMEOUT_S
    os.environ.setdefault(START_TIMEOUT, str(max(START_TIMEOUT_S, wait_s)))
    try:
        yield
    except ControllerError as error:
        if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise
        number, waited = error.controller_failure.num_workers, tries * float(os.environ[START_TIMEOUT])
        raise InputError(
            f"workers.train_workers: the cluster had no room for {number} at once within {waited:g} s; "
            "ask for fewer, let fine-tuning begin with fewer by workers.min_train_workers, or add nodes; the "
            "same command goes on"
        ) from error


@contextlib.contextmanager
def _in_this_cluster() -> Iterator[None]:
    """Let Ray Train's cleaner, which asks every second whether the controller lives, ask this run's cluster.

    Without RAY_ADDRESS it asks whichever `ray start` made last on its machine: one that is gone keeps a
    training 12 s at its end, and to another that runs the controller is unknown, which counts as dead: its
    workers' places are taken away. Goes when the cleaner is told the address.
    """
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE  # to the controller; no public name

    ENV_VARS_TO_PROPAGATE.add(ADDRESS)
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        if before is not None:
            os.environ[ADDRESS] = before
