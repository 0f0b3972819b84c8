"""The Ray cluster or machine that works on a run, and how many actors fit it."""

import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, TypeVar

import ray
import ray.exceptions
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ims3_ray.config.base import DeviceKind
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError

from . import fork_server
from .auth_token import make_private_token
from .environment import Environment, find_environment
from .ray_patches import CPUS_PER_ACTOR, LOOPBACK, errors_only, keep_sigterm, on_loopback, set_environment

MEMORY_PER_ACTOR = 1.2e9  # bytes: a worker process with torch and a small model
MIN_SHARDS = 2
CONNECT_TIMEOUT_S = 10.0  # for a cluster's head to answer
Result = TypeVar("Result")


class Placement(TypedDict):
    scheduling_strategy: Literal["DEFAULT"]


# of a task: else those of Tune's trials may only use what the trial reserved
DEFAULT_PLACEMENT: Placement = {"scheduling_strategy": "DEFAULT"}


@dataclass(frozen=True)
class Machine:
    """What the cluster offers, and the sizes that follow from it unless `Workers` gives them."""

    device: DeviceKind
    cpus: int
    gpus: int
    memory: float  # bytes
    workers: Workers
    runs_at_once: int = 1  # that train classifiers side by side: a sweep's trials
    cpus_apart: int = 0  # of `cpus`, those of nodes without GPUs, where Ray puts what needs none
    environments: tuple[Environment, ...] = ()  # of the nodes that work; empty before a cluster is joined

    @property
    def on_gpus(self) -> bool:
        """Whether each worker of a model holds a GPU."""
        return self.device == "cuda"

    @property
    def devices(self) -> int:
        """What workers of a model share out: GPUs, or CPU cores."""
        return max(1, self.gpus if self.on_gpus else self.cpus)

    @property
    def actors(self) -> int:
        """Actors in a pool of models: one a GPU, or one a CPU core as far as memory goes."""
        if self.workers.actors:
            return self.workers.actors
        if self.on_gpus:
            return self.gpus
        return max(1, min(self.cpus, int(self.memory / MEMORY_PER_ACTOR)))

    @property
    def min_actors(self) -> int:
        """What a pool starts work with, while the cluster grows towards `actors` or has lost nodes."""
        return min(self.workers.min_actors, self.actors)

    @property
    def shards(self) -> int:
        return self.workers.shards or max(MIN_SHARDS, self.cpus_apart or self.cpus)

    @property
    def trials(self) -> int:
        """Trials of a sweep at once: as many as train a classifier; one selects while another trains."""
        at_once = int(self.gpus / self.workers.gpus_per_classifier) if self.on_gpus else self.cpus
        return self.workers.trials or max(1, at_once)

    def train_workers(self, micro_batches: int) -> int:
        """Train workers: the given number, or the largest divisor of `micro_batches` with devices."""
        for name in ("train_workers", "min_train_workers"):
            if (number := getattr(self.workers, name) or 1) > micro_batches:
                raise InputError(
                    f"workers.{name}: {number} are more than the {micro_batches} parts of a batch "
                    "(finetune.micro_batches); lower it"
                )
        fitting = max(n for n in range(1, self.devices + 1) if micro_batches % n == 0)
        return self.workers.train_workers or fitting

    def elastic_train_workers(self, micro_batches: int) -> int | tuple[int, int]:
        """For ScalingConfig: the number, or, given workers.min_train_workers, the least and the most."""
        most, least = self.train_workers(micro_batches), self.workers.min_train_workers
        return most if least is None or least >= most else (least, most)

    @property
    def actor_resources(self) -> dict[str, Any]:
        """What each actor reserves, as Ray's options."""
        return {"num_cpus": CPUS_PER_ACTOR} | ({"num_gpus": 1} if self.on_gpus else {})

    @property
    def pool_resources(self) -> dict[str, Any]:
        """What each actor of a pool reserves: memory too, since the pool grows as far as there is room."""
        return self.actor_resources | {"memory": MEMORY_PER_ACTOR}

    def classifier_share(self, trainings: int) -> float:
        """Of a GPU, for each of so many trainings: a whole one as long as there are as many as trainings.

        Ray lays shares side by side on one GPU while others have nothing to do.
        """
        return min(1.0, max(self.workers.gpus_per_classifier, self.gpus / (trainings * self.runs_at_once)))

    def classifier_resources(self, trainings: int) -> dict[str, Any]:
        """What each of so many trainings of classifiers reserves, as Ray's options."""
        share = {"num_gpus": self.classifier_share(trainings)} if self.on_gpus else {}
        return self.actor_resources | share


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start one that listens on loopback, unless connected already."""
    if ray.is_initialized():
        return
    set_environment()
    errors_only("ray")
    options: dict[str, Any] = {}
    if has_address():
        _reach(os.environ["RAY_ADDRESS"])
    else:
        make_private_token()
        options = {"address": "local", "dashboard_host": LOOPBACK, "_node_ip_address": LOOPBACK}
        options["runtime_env"] = {"py_executable": fork_server.start()}
    # Nothing that workers print reaches the driver: their errors travel as exceptions, their figures as
    # metrics.
    try:
        with on_loopback() if starts_local_cluster() else contextlib.nullcontext():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"RAY_ADDRESS: {os.environ['RAY_ADDRESS']} can't be joined; is the cluster up, and, where its "
            "ports are guarded by a token, is RAY_AUTH_MODE=token exported here too?"
        ) from error
    keep_sigterm()


def _reach(address: str) -> None:
    """InputError for what is no address, and for one where nobody answers: Ray would try for many minutes."""
    if address in ("auto", "local"):
        return
    parts = re.fullmatch(r"(?:ray://)?\[?([^\s/\[\]]+)\]?:(\d{1,5})", address)
    if not parts:
        raise InputError(f"RAY_ADDRESS: {address!r} is no address; write HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((parts[1], int(parts[2])), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"RAY_ADDRESS: nobody answers at {address} ({error}); start the cluster there, or name another"
        ) from error


def find_machine(workers: Workers, *, wait: bool = True) -> Machine:
    """The machine as `workers` wants it used, once the cluster has the GPUs that it names.

    Raises InputError for a GPU that Ray does not see. Without `wait`, GPUs to come are counted as there.
    """
    if ray.is_initialized() and workers.gpus and wait:
        wait_for_gpus(workers.gpus, workers.wait_s)
    if ray.is_initialized():
        total = ray.cluster_resources()
        cpus, gpus, memory = int(total.get("CPU", 1)), int(total.get("GPU", 0)), total.get("memory", 4e9)
        apart = _cpus_without_gpus()
    else:  # before anything is started, as for --dry-run
        import torch

        cpus, gpus, apart = os.cpu_count() or 1, torch.cuda.device_count(), 0
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.7
    gpus = gpus if wait else max(gpus, workers.gpus or 0)
    if workers.device == "cuda" and not gpus:
        raise InputError(
            "workers.device: cuda asked for, but Ray sees no GPU; use workers.device=cpu or a node with one"
        )
    device = ("cuda" if gpus else "cpu") if workers.device == "auto" else workers.device
    machine = Machine(device, max(1, cpus), gpus, memory, workers, cpus_apart=apart)
    return replace(machine, environments=_environments(machine)) if ray.is_initialized() and wait else machine


def _environments(machine: Machine) -> tuple[Environment, ...]:
    """Of each node that works, as it is now: a node that joins later is not asked."""
    if num_nodes() == 1 and not machine.on_gpus:
        return (find_environment(False),)  # a task would have to wait for a worker
    return tuple(run_on_every_node(machine, find_environment, machine.on_gpus))


def _cpus_without_gpus() -> int:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return int(sum(has.get("CPU", 0) for has in alive if not has.get("GPU")))


def wait_for_gpus(number: int, wait_s: float) -> None:
    """Return once the cluster has `number` GPUs. They are asked for, which makes an autoscaling cluster grow.

    A run sizes its actors to the devices that it sees when it starts, and a cluster at rest shows none.
    InputError where they are not there after `wait_s` seconds.
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
    """Whether RAY_ADDRESS names a cluster to join."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_device(workers: Workers) -> None:
    """InputError, before anything is started, for a GPU asked for where there can be none."""
    if workers.device != "cuda" or has_address():
        return
    import torch  # seconds to import

    if not torch.cuda.is_available():
        raise InputError(
            "workers.device: cuda asked for, but this machine has no GPU and RAY_ADDRESS names no cluster"
        )


def run_on_every_node(machine: Machine, function: Callable[..., Result], *arguments: object) -> list[Result]:
    """Return `function(*arguments)` of every node that work may run on; what it raises is raised here."""
    kind = "GPU" if machine.on_gpus else "CPU"
    # a process that has started CUDA would keep memory of the GPU
    task = ray.remote(num_cpus=0, max_calls=1 if machine.on_gpus else 0)(function)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
    where = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]  # one that is lost meanwhile
    return ray.get([task.options(scheduling_strategy=place).remote(*arguments) for place in where])


def num_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())
