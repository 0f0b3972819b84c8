"""A run on a cluster made of this machine: nodes of logical GPUs, and one without; work is done on CPUs.

    python tests/support/simulated.py OUT.json NODES GPUS field=value …

Writes, by stage, what it was seen to hold of GPUs and CPUs on each kind of node, the driver's memory, and how
many requests went to the storage. Those are counted by the server of `loopback_store`.
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

import psutil
import ray
import warm
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.jobs.distill import run as distillation
from ims3_ray.pipeline import prepare

CPUS = 10  # of every node but the head, which has none
EVERY_S = 0.1
OBJECT_STORE = 80 * 2**20


class Simulated(Machine):
    """Workers hold GPUs, and compute without."""

    @property
    def on_gpus(self) -> bool:
        return True


@dataclass
class Seen:
    """The most that was held at once while a stage ran."""

    stage: str
    planned: int  # GPUs, as the stage says
    limit: str
    gpus: int = 0
    nodes: int = 0  # with a GPU held
    cpus: dict[str, float] = field(default_factory=lambda: {"with GPUs": 0.0, "without": 0.0})
    driver: int = 0  # bytes
    requests: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Watch:
    """Looks at the nodes and at this process until it is closed."""

    def __init__(self, seen: Seen):
        self._seen, self._ended = seen, threading.Event()
        self._totals = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        seen, driver = self._seen, psutil.Process()
        while not self._ended.wait(EVERY_S):
            seen.driver = max(seen.driver, driver.memory_full_info().uss)
            gpus, cpus = [], {"with GPUs": 0.0, "without": 0.0}
            for node, left in available_resources_per_node().items():
                total = self._totals[node]
                gpus.append(total.get("GPU", 0) - left.get("GPU", 0))
                kind = "with GPUs" if total.get("GPU") else "without"
                cpus[kind] += total.get("CPU", 0) - left.get("CPU", 0)
            seen.gpus = max(seen.gpus, round(sum(gpus)))
            seen.nodes = max(seen.nodes, sum(held > 0 for held in gpus))
            seen.cpus = {kind: max(held, seen.cpus[kind]) for kind, held in cpus.items()}


def counted() -> Counter:
    """Requests by kind that the storage's server has had."""
    import os

    with urllib.request.urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/counted") as answer:
        return Counter(json.load(answer))


@contextlib.contextmanager
def cluster(nodes: int, gpus: int):
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE})
    made.add_node(num_cpus=CPUS, object_store_memory=OBJECT_STORE)
    for _ in range(nodes):
        made.add_node(num_cpus=CPUS, num_gpus=gpus, object_store_memory=OBJECT_STORE)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def main(out: Path, nodes: int, gpus: int, words: list[str]) -> None:
    table: list[Seen] = []
    run_step = distillation.run_step

    def watched(context, step):
        while ray.available_resources().get("GPU") != nodes * gpus:  # the last stage's actors are ending
            time.sleep(EVERY_S)
        use = step.stage.gpu_usage(context)
        seen, before, began = Seen(step.stage.name, use.gpus, use.limit), counted(), time.monotonic()
        watch = Watch(seen)
        done = run_step(context, step)
        watch.close()
        seen.requests, seen.seconds = dict(counted() - before), time.monotonic() - began
        table.append(seen)
        print(asdict(seen), flush=True)
        return done

    def machine(workers, *, wait=True):
        return Simulated("cpu", CPUS * (nodes + 1), nodes * gpus, 64e9, workers, cpus_apart=CPUS)

    distillation.run_step, prepare.find_machine = watched, machine
    with warm.workers(), cluster(nodes, gpus):
        distillation.run(load_config("digits-paper", parse_overrides(words)))
    out.write_text(json.dumps([asdict(seen) for seen in table]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
