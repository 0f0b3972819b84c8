"""Observe nodes while a stage runs: the load of their GPUs, and the last lines of workers that crashed."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import ray
import ray.exceptions
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ims3_ray.display import one_line, redact

from .resources import Machine, live_nodes

QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
INTERVAL_S, TIMEOUT_S = 5, 10
CRASHES = ("SYSTEM_ERROR", "NODE_OUT_OF_MEMORY")  # exit types of Ray
LINES = 20
Reading = tuple[float, float]  # of a GPU: share of the time with a running kernel; GB used


@ray.remote(num_cpus=0)
class GpuMonitor:
    """Reads a node's GPUs every INTERVAL_S; keeps nothing if their number is not `num_gpus`, those of Ray."""

    def __init__(self, num_gpus: int, query: Sequence[str]):
        self._readings = read_gpus(query)
        if len(self._readings) != num_gpus:
            self._readings = []
        else:
            threading.Thread(target=self._watch, args=(query,), daemon=True).start()

    def _watch(self, query: Sequence[str]) -> None:
        while True:
            time.sleep(INTERVAL_S)
            self._readings += read_gpus(query)

    def readings(self) -> list[Reading]:
        return self._readings


def read_gpus(query: Sequence[str] = QUERY) -> list[Reading]:
    """Return a reading of each GPU of this node; [] without NVIDIA's driver."""
    with contextlib.suppress(OSError, ValueError):  # no nvidia-smi; "[N/A]" or an error message
        rows = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
        return [(float(busy) / 100, float(used) * 2**20 / 1e9) for busy, used in (r.split(",") for r in rows)]
    return []


@contextlib.contextmanager
def gpu_load(machine: Machine, query: Sequence[str] = QUERY) -> Iterator[dict[str, float]]:
    """Yield a dictionary that has, after the block, the load of the present nodes' GPUs.

    `utilisation` is their mean, 0 to 1; `max_memory_gb` is of one GPU. Empty without NVIDIA's driver.
    """
    load: dict[str, float] = {}
    monitors = []
    for node in live_nodes() if machine.on_gpus else []:
        if num_gpus := int(node["Resources"].get("GPU", 0)):
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            monitors.append(GpuMonitor.options(scheduling_strategy=on_node).remote(num_gpus, query))
    yield load
    readings: list[Reading] = []
    for monitor in monitors:
        with contextlib.suppress(ray.exceptions.RayError):  # its node is lost
            readings += ray.get(cast(ActorHandle, monitor).readings.remote(), timeout=TIMEOUT_S)
    if readings:
        busy, used = zip(*readings, strict=True)
        load |= {"utilisation": round(sum(busy) / len(busy), 3), "max_memory_gb": round(max(used), 2)}


def crashed_workers(known: set[str]) -> Iterator[dict[str, Any]]:
    """Yield this job's crashed workers that are not `known`, which grows, with the last lines of their logs.

    Yields nothing if Ray has no dashboard. The logs of a lost node are lost.
    """
    from ray.util.state import get_log, list_workers  # slow to import

    context = ray.get_runtime_context()
    where: Any = {"address": context.gcs_address, "timeout": TIMEOUT_S}
    with contextlib.suppress(Exception):  # the result does not depend on it
        dead: Any = [("is_alive", "=", "false")]
        workers: list[Any] = list_workers(**where, filters=dead, detail=True, limit=10_000)
        for worker in workers:
            if worker.exit_type not in CRASHES or worker.worker_id in known:
                continue
            known.add(worker.worker_id)
            name = f"worker-{worker.worker_id}-{context.get_job_id()}-{worker.pid}"
            with contextlib.suppress(Exception):  # of another job, or its node is lost
                logs = [
                    "".join(get_log(**where, node_id=worker.node_id, filename=f"{name}.{end}", tail=LINES))
                    for end in ("out", "err")
                ]
                lines = [one_line(line) for line in redact("".join(logs)).splitlines() if line[:1] != ":"]
                yield {"pid": worker.pid, "node": worker.ip, "reason": worker.exit_detail, "lines": lines}
