"""Load of GPUs, and last lines of workers that crashed."""

import json

import pytest
from processes import python

from ims3_ray.cluster import monitor
from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.settings import Workers

GPUS = "sh", "-c", "printf '80, 1000\\n20, 3000\\n'"
CRASH = """
import json, os, ray
from ims3_ray.cluster import monitor, resources
resources.connect()

@ray.remote(max_retries=0)
def crash():
    os.write(2, b"last words: s3://key:secret@bucket\\n")
    os.kill(os.getpid(), 9)

try:
    ray.get(crash.remote())
except ray.exceptions.WorkerCrashedError:
    known = set()
    print(json.dumps([list(monitor.crashed_workers(known)) for _ in range(2)]))
"""


@pytest.mark.parametrize(("num_gpus", "load"), [(2, {"utilisation": 0.5, "max_memory_gb": 3.15}), (1, {})])
def test_the_load_of_a_nodes_gpus_is_measured_if_all_are_rays(ray_cluster, monkeypatch, num_gpus, load):
    node = ray_cluster.nodes()[0]
    node["Resources"]["GPU"] = num_gpus
    machine = find_machine(Workers())
    monkeypatch.setattr(ray_cluster, "nodes", lambda: [node])
    with monitor.gpu_load(machine, GPUS) as on_cpu:
        pass
    object.__setattr__(machine, "device", "cuda")
    with monitor.gpu_load(machine, GPUS) as on_gpu:
        assert on_gpu == {}
    assert (on_cpu, on_gpu) == ({}, load)


@pytest.mark.parametrize("query", [("no-such-program",), ("sh", "-c", "echo No devices were found; exit 6")])
def test_without_a_driver_there_are_no_readings(query):
    assert monitor.read_gpus(query) == []


@pytest.mark.slow
def test_a_crashed_worker_is_reported_once_with_its_last_lines():
    script = python(CRASH, check=True)
    (crash,), again = json.loads(script.stdout.splitlines()[-1])
    assert crash["reason"]
    assert crash["lines"][-1] == "last words: s3://***@bucket"
    assert again == []
