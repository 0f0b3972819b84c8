"""A cluster without workers grows on demand, and the run starts when workers come."""

import json

import pytest
from processes import checksums, environment, finished
from raylets import OBJECT_STORE, free_port, guarded, node, own_address

HEAD = "ray.head.default"  # the name in Ray's fake multi-node provider
pytestmark = pytest.mark.chaos


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
        **{name: {} for name in ("docker", "file_mounts")},
        **{f"{what}_commands": [] for what in ("initialization", "setup", *nodes)},
        "cluster_synced_files": [],
    }
    config.write_text(json.dumps(described))
    env = guarded(environment()) | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    words = [
        "--head",
        "--num-cpus=0",
        f"--port={port}",
        f"--dashboard-port={free_port()}",
        f"--autoscaling-config={config}",
    ]
    with node(*words, env=env, log=tmp_path / "head.log"):
        yield env | {"RAY_ADDRESS": address}


def test_a_run_grows_a_cluster_without_workers(resting_cluster, finished_images, tiny_overrides, tmp_path):
    words = [*tiny_overrides, "workers={actors: 2, shards: 2, train_workers: 2, device: cpu}"]
    code, _, err = finished("distill", *words, env=resting_cluster)
    assert code == 0, err
    assert checksums(tmp_path / "runs") == finished_images
