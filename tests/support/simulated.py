"""A run on a simulated cluster: nodes with logical GPUs and one without, all on this machine's CPUs.

    python tests/support/simulated.py OUT.json NODES GPUS field=value …

Writes, per stage, the peak of held GPUs and CPUs by kind of node, the driver's peak memory, and the number of
storage requests, which the server of `loopback_store` counts.
"""

import contextlib
import json
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import planned
import psutil
import ray
import warm
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

from ims3_ray.cluster.resources import Machine
from ims3_ray.jobs.distill import run as distillation
from ims3_ray.pipeline import prepare

CPUS = 10  # per node; the head has none
INTERVAL_S = 0.1
OBJECT_STORE = 80 * 2**20


class Simulated(Machine):
    """A machine whose workers hold GPUs but compute on CPUs."""

    @property
    def on_gpus(self) -> bool:
        return True


@dataclass
class Usage:
    """Peak resources during a stage."""

    stage: str
    planned: int  # GPUs that the stage declares
    limit: str
    gpus: int = 0
    nodes: int = 0  # that hold a GPU
    cpus: dict[str, float] = field(default_factory=lambda: {"with GPUs": 0.0, "without": 0.0})
    driver: int = 0  # bytes
    requests: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Watch:
    """Samples the nodes and this process until it is closed."""

    def __init__(self, usage: Usage):
        self._usage, self._ended = usage, threading.Event()
        self._totals = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        usage, driver = self._usage, psutil.Process()
        while not self._ended.wait(INTERVAL_S):
            usage.driver = max(usage.driver, driver.memory_full_info().uss)
            gpus, cpus = [], {"with GPUs": 0.0, "without": 0.0}
            for node, left in available_resources_per_node().items():
                total = self._totals[node]
                gpus.append(total.get("GPU", 0) - left.get("GPU", 0))
                kind = "with GPUs" if total.get("GPU") else "without"
                cpus[kind] += total.get("CPU", 0) - left.get("CPU", 0)
            usage.gpus = max(usage.gpus, round(sum(gpus)))
            usage.nodes = max(usage.nodes, sum(count > 0 for count in gpus))
            usage.cpus = {kind: max(count, usage.cpus[kind]) for kind, count in cpus.items()}


def counted() -> Counter:
    """Requests to the storage server, by kind."""
    import os

    with urllib.request.urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/counted") as answer:
        return Counter(json.load(answer))


@contextlib.contextmanager
def cluster(nodes: int, gpus: int):
    simulated = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE}
    )
    simulated.add_node(num_cpus=CPUS, object_store_memory=OBJECT_STORE)
    for _ in range(nodes):
        simulated.add_node(num_cpus=CPUS, num_gpus=gpus, object_store_memory=OBJECT_STORE)
    simulated.wait_for_nodes()
    ray.init(address=simulated.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
        simulated.shutdown()


def main(out: Path, nodes: int, gpus: int, words: list[str]) -> None:
    table: list[Usage] = []
    run_step = distillation.run_step

    def measured(context, step):
        while (
            ray.available_resources().get("GPU") != nodes * gpus
        ):  # until the last stage's actors have ended
            time.sleep(INTERVAL_S)
        declared = step.stage.gpu_usage(context)
        usage = Usage(step.stage.name, declared.gpus, declared.limit)
        before, start = counted(), time.monotonic()
        watch = Watch(usage)
        done = run_step(context, step)
        watch.close()
        usage.requests, usage.seconds = dict(counted() - before), time.monotonic() - start
        table.append(usage)
        print(asdict(usage), flush=True)
        return done

    def machine(workers, *, wait=True):
        return Simulated("cpu", CPUS * (nodes + 1), nodes * gpus, 64e9, workers, cpus_apart=CPUS)

    distillation.run_step, prepare.find_machine = measured, machine
    with warm.workers(), cluster(nodes, gpus):
        distillation.run(planned.config_of(words, recipe="digits-paper"))
    out.write_text(json.dumps([asdict(usage) for usage in table]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
