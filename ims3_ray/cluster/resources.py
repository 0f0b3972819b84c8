"""Connect to a Ray cluster or start one, and size actor pools to its resources."""

import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, TypeVar

import psutil
import ray
import ray.exceptions
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ims3_ray.config.allocation import granted_cpus, granted_memory
from ims3_ray.config.base import DeviceKind
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError

from . import fork_server
from .auth_token import make_private_token
from .environment import Environment, find_environment
from .ray_patches import CPUS_PER_ACTOR, LOOPBACK, errors_only, on_loopback, restore_sigterm, set_environment

MEMORY_PER_ACTOR = 1.2e9  # bytes: a worker process with torch and a small model
OBJECT_STORE_SHARE, WORKERS_SHARE = 0.3, 0.6  # of a grant of memory; the driver has the rest
MIN_SHARDS = 2
CONNECT_TIMEOUT_S = 10.0
Result = TypeVar("Result")


class Placement(TypedDict):
    scheduling_strategy: Literal["DEFAULT"]


# lets a task of a Tune trial use more than the trial's own resources
DEFAULT_PLACEMENT: Placement = {"scheduling_strategy": "DEFAULT"}


@dataclass(frozen=True)
class Machine:
    """The resources of a cluster or machine, and the pool sizes that follow unless `workers` sets them."""

    device: DeviceKind
    cpus: int
    gpus: int
    memory: float  # bytes
    workers: Workers
    runs_at_once: int = 1  # concurrent trials of a sweep, which share the GPUs
    cpus_apart: int = 0  # CPUs of nodes without GPUs; Ray prefers them for CPU work
    environments: tuple[Environment, ...] = ()  # one per node; empty before a cluster is joined

    @property
    def on_gpus(self) -> bool:
        return self.device == "cuda"

    @property
    def devices(self) -> int:
        """The number of GPUs, or of CPU cores without GPUs."""
        return max(1, self.gpus if self.on_gpus else self.cpus)

    @property
    def actors(self) -> int:
        """Actors in a pool of models: one per GPU, or one per CPU core as far as memory allows."""
        if self.workers.actors:
            return self.workers.actors
        if self.on_gpus:
            return self.gpus
        return max(1, min(self.cpus, int(self.memory / MEMORY_PER_ACTOR)))

    @property
    def min_actors(self) -> int:
        """Actors that a pool needs to start, while the cluster grows to `actors` or has lost nodes."""
        return min(self.workers.min_actors, self.actors)

    @property
    def shards(self) -> int:
        return self.workers.shards or max(MIN_SHARDS, self.cpus_apart or self.cpus)

    @property
    def trials(self) -> int:
        """Concurrent trials of a sweep: as many as can train a classifier, while others select."""
        fitting = int(self.gpus / self.workers.gpus_per_classifier) if self.on_gpus else self.cpus
        return self.workers.trials or max(1, fitting)

    def train_workers(self, micro_batches: int) -> int:
        """Train workers: `workers.train_workers`, or the largest divisor of `micro_batches` with devices.

        Raises InputError for more workers than micro-batches.
        """
        for name in ("train_workers", "min_train_workers"):
            if (number := getattr(self.workers, name) or 1) > micro_batches:
                raise InputError(
                    f"workers.{name}: {number} are more than the {micro_batches} parts of a batch "
                    "(finetune.micro_batches); lower it"
                )
        fitting = max(n for n in range(1, self.devices + 1) if micro_batches % n == 0)
        return self.workers.train_workers or fitting

    def elastic_train_workers(self, micro_batches: int) -> int | tuple[int, int]:
        """ScalingConfig's `num_workers`: a number, or (min, max) if workers.min_train_workers is lower."""
        maximum, minimum = self.train_workers(micro_batches), self.workers.min_train_workers
        return maximum if minimum is None or minimum >= maximum else (minimum, maximum)

    @property
    def actor_resources(self) -> dict[str, Any]:
        """Ray options of one actor."""
        return {"num_cpus": CPUS_PER_ACTOR} | ({"num_gpus": 1} if self.on_gpus else {})

    @property
    def pool_resources(self) -> dict[str, Any]:
        """Ray options of a pool's actor; reserved memory limits how far the pool grows."""
        return self.actor_resources | {"memory": MEMORY_PER_ACTOR}

    def classifier_share(self, trainings: int) -> float:
        """GPUs per training, for this number of trainings: 1 if there are enough GPUs, else a share.

        Ray packs shares onto one GPU even if others are idle, so shares are as large as possible.
        """
        return min(1.0, max(self.workers.gpus_per_classifier, self.gpus / (trainings * self.runs_at_once)))

    def classifier_resources(self, trainings: int) -> dict[str, Any]:
        """Ray options of one of `trainings` trainings of classifiers."""
        share = {"num_gpus": self.classifier_share(trainings)} if self.on_gpus else {}
        return self.actor_resources | share


def connect(workers: Workers | None = None) -> None:
    """Join the cluster of RAY_ADDRESS, or start one that listens on loopback, unless already connected.

    A started cluster has `workers.cpus` cores, by default those granted to this process. Raises InputError if
    RAY_ADDRESS is malformed or cannot be joined, and if no cluster can start here.
    """
    if ray.is_initialized():
        return
    set_environment()
    errors_only("ray")
    options: dict[str, Any] = {}
    if has_address():
        _check_address(os.environ["RAY_ADDRESS"])
    else:
        make_private_token()
        options = {"address": "local", "dashboard_host": LOOPBACK, "_node_ip_address": LOOPBACK}
        options["runtime_env"] = {"py_executable": fork_server.start()}
        options |= local_resources(workers or Workers())
    # workers' output is not needed: their errors arrive as exceptions, their metrics by MetricsActor
    try:
        with on_loopback() if starts_local_cluster() else contextlib.nullcontext():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError) as error:
        if not has_address():
            raise InputError(f"Ray cannot start on this machine: {error}; grant more memory") from error
        raise InputError(
            f"RAY_ADDRESS: {os.environ['RAY_ADDRESS']} cannot be joined; check that the cluster is up and, "
            "if it requires a token, that RAY_AUTH_MODE=token is exported here too"
        ) from error
    except OSError as error:  # of Ray's own files
        remedy = "set RAY_TMPDIR to a short, writable folder"
        raise InputError(f"Ray cannot start on this machine: {error}; {remedy}") from error
    restore_sigterm()


def local_resources(workers: Workers) -> dict[str, int]:
    """Return the options of ray.init that keep a cluster on this machine within what is granted."""
    resources, memory = {"num_cpus": workers.cpus or granted_cpus()}, granted_memory()
    if memory < psutil.virtual_memory().total:
        store = int(OBJECT_STORE_SHARE * memory)
        resources |= {"object_store_memory": store, "_memory": int(WORKERS_SHARE * memory)}
    return resources


def _check_address(address: str) -> None:
    """Raise InputError for a malformed address or one without an answer; Ray would retry for minutes."""
    if address in ("auto", "local"):
        return
    parts = re.fullmatch(r"(?:ray://)?\[?([^\s/\[\]]+)\]?:(\d{1,5})", address)
    if not parts:
        raise InputError(f"RAY_ADDRESS: {address!r} is no address; write HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((parts[1], int(parts[2])), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"RAY_ADDRESS: no answer from {address} ({error}); start the cluster, or name another"
        ) from error


def find_machine(workers: Workers, *, wait: bool = True) -> Machine:
    """Return the resources of the connected cluster, else of this machine, once it has `workers.gpus` GPUs.

    Without `wait`, GPUs that are still to come are counted. Raises InputError if Ray sees no GPU but
    `workers.device` is cuda, or if the GPUs do not come in time.
    """
    if ray.is_initialized() and workers.gpus and wait:
        wait_for_gpus(workers.gpus, workers.wait_s)
    if ray.is_initialized():
        total = ray.cluster_resources()
        cpus, gpus, memory = int(total.get("CPU", 1)), int(total.get("GPU", 0)), total.get("memory", 4e9)
        cpus_apart = _cpus_without_gpus()
    else:  # a dry run
        import torch

        cpus, gpus, cpus_apart = workers.cpus or granted_cpus(), torch.cuda.device_count(), 0
        memory = granted_memory() * 0.7
    gpus = gpus if wait else max(gpus, workers.gpus or 0)
    if workers.device == "cuda" and not gpus:
        raise InputError(
            "workers.device: cuda is set, but Ray sees no GPU; use workers.device=cpu or a node with a GPU"
        )
    device = ("cuda" if gpus else "cpu") if workers.device == "auto" else workers.device
    machine = Machine(device, max(1, cpus), gpus, memory, workers, cpus_apart=cpus_apart)
    return replace(machine, environments=_environments(machine)) if ray.is_initialized() and wait else machine


def expect_gpu(workers: Workers) -> Workers:
    """Return `workers` for a query: if `device` is cuda, a GPU is still to come where the work will run."""
    return workers.model_copy(update={"gpus": workers.gpus or 1}) if workers.device == "cuda" else workers


def _environments(machine: Machine) -> tuple[Environment, ...]:
    """The environment of each present node; nodes that join later are not asked."""
    if len(live_nodes()) == 1 and not machine.on_gpus:
        return (find_environment(False),)  # faster than a task
    return tuple(run_on_every_node(machine, find_environment, machine.on_gpus))


def _cpus_without_gpus() -> int:
    resources = [node["Resources"] for node in live_nodes()]
    return int(sum(of_node.get("CPU", 0) for of_node in resources if not of_node.get("GPU")))


def wait_for_gpus(number: int, wait_s: float) -> None:
    """Return once the cluster has `number` GPUs; requesting them makes an autoscaling cluster grow.

    A run sizes its pools when it starts, and an idle autoscaling cluster has no GPUs. Raises InputError after
    `wait_s` seconds.
    """
    if ray.cluster_resources().get("GPU", 0) >= number:
        return
    group = placement_group([{"GPU": 1}] * number)
    try:
        ray.get(group.ready(), timeout=wait_s)
    except ray.exceptions.GetTimeoutError as error:
        raise InputError(
            f"workers.gpus: the cluster has {ray.cluster_resources().get('GPU', 0):g} of {number} free after "
            f"{wait_s:g} s; ask for fewer, raise the cluster's maximum of workers, or wait longer with "
            "workers.wait_s"
        ) from error
    finally:
        remove_placement_group(group)


def starts_local_cluster() -> bool:
    """Whether `connect` would start a cluster on this machine."""
    return not ray.is_initialized() and not has_address()


def has_address() -> bool:
    """Whether RAY_ADDRESS names a cluster."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def check_device(workers: Workers) -> None:
    """Raise InputError, before Ray starts, for workers.device=cuda on a machine without a GPU."""
    if workers.device != "cuda" or has_address():
        return
    import torch  # takes seconds

    if not torch.cuda.is_available():
        raise InputError(
            "workers.device: cuda is set, but this machine has no GPU and RAY_ADDRESS names no cluster"
        )


def is_present(machine: Machine) -> bool:
    """Whether the machine's kind of device is there already; GPUs of a growing cluster are still to come."""
    if not machine.on_gpus:
        return True
    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU"))
    import torch

    return torch.cuda.is_available()


def run_on_every_node(machine: Machine, function: Callable[..., Result], *arguments: object) -> list[Result]:
    """Return `function(*arguments)` from each node with the machine's device; re-raises its errors."""
    kind = "GPU" if machine.on_gpus else "CPU"
    # a process that has started CUDA would keep GPU memory
    task = ray.remote(num_cpus=0, max_calls=1 if machine.on_gpus else 0)(function)
    nodes = [node["NodeID"] for node in live_nodes() if node["Resources"].get(kind)]
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]  # a node may be lost
    return ray.get([task.options(scheduling_strategy=each).remote(*arguments) for each in strategies])


def live_nodes() -> list[dict[str, Any]]:
    """Ray's description of each node that has not been lost."""
    return [node for node in ray.nodes() if node["Alive"]]
