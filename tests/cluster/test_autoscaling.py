"""A cluster without workers grows on demand, and the run starts when workers come."""

import json
import subprocess
import sys
import time

import pytest
from processes import checksums, environment, finished
from raylets import OBJECT_STORE, free_port, guarded, node, own_address

HEAD = "ray.head.default"  # the name in Ray's fake multi-node provider
pytestmark = pytest.mark.chaos

GROWING_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
store = {"object_store_memory": 80 * 2**20}
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 1, **store})
print("at", nodes.address, flush=True)
for _ in sys.stdin:
    nodes.add_node(num_cpus=1, num_gpus=1, **store)
nodes.shutdown()
"""  # a process of its own, since Ray reads RAY_AUTH_MODE only once

WAITING = """
import ray, time
from ims3_ray.cluster.resources import connect, find_machine
from ims3_ray.config.settings import Workers
connect()
found = find_machine(Workers(gpus=2, wait_s=60))
while ray.available_resources().get("GPU") != found.gpus:  # the placement group is released soon
    time.sleep(0.2)
print(found.device, found.gpus)
"""


@pytest.fixture
def resting_cluster(tmp_path):
    """Environment of a process that joins a head without CPUs; it can grow by three workers of one CPU."""
    port, config = free_port(), tmp_path / "autoscaling.json"
    address = f"{own_address()}:{port}"
    resting = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    worker = resting | {"resources": {"CPU": 1, "object_store_memory": OBJECT_STORE}, "max_workers": 3}
    nodes = [f"{who}_{what}" for who in ("head", "worker") for what in ("setup", "start_ray")]
    provider = {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True}
    described = {
        "cluster_name": "resting",
        "max_workers": 3,
        "idle_timeout_minutes": 5,
        "provider": provider | {"disable_node_updaters": True},  # they would use SSH
        "available_node_types": {HEAD: resting, "worker": worker},
        "head_node_type": HEAD,
        "auth": {"ssh_user": "nobody"},
        "cluster_synced_files": [],
        **{name: {} for name in ("docker", "file_mounts")},
        **{f"{what}_commands": [] for what in ("initialization", "setup", *nodes)},
    }
    config.write_text(json.dumps(described))
    env = guarded(environment()) | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    ports = (f"--port={port}", f"--dashboard-port={free_port()}")
    words = ("--head", "--num-cpus=0", *ports, f"--autoscaling-config={config}")
    with node(*words, env=env, log=tmp_path / "head.log"):
        yield env | {"RAY_ADDRESS": address}


def test_a_run_grows_a_cluster_without_workers(resting_cluster, finished_images, tiny_overrides, tmp_path):
    words = [*tiny_overrides, "workers={actors: 2, shards: 2, train_workers: 2, device: cpu}"]
    code, _, err = finished("distill", *words, env=resting_cluster)
    assert code == 0, err
    assert checksums(tmp_path / "runs") == finished_images


def test_a_run_starts_once_the_requested_gpus_are_there(tmp_path):
    (tmp_path / "auth_token").write_text("ab" * 32 + "\n")  # like the README's command
    env = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{tmp_path}/auth_token"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    pipes |= {"env": env, "text": True}
    with subprocess.Popen([sys.executable, "-c", GROWING_CLUSTER], **pipes) as nodes:
        env["RAY_ADDRESS"] = next(line for line in nodes.stdout if line.startswith("at ")).split()[1]
        waiting = subprocess.Popen([sys.executable, "-c", WAITING], **pipes)
        try:
            time.sleep(5)  # one is there
            assert waiting.poll() is None
            nodes.stdin.write("one more\n")
            nodes.stdin.flush()
            assert waiting.communicate(timeout=90)[0] == "cuda 2\n"
        finally:
            waiting.kill()
            nodes.stdin.close()
