"""A cluster of several nodes, with the data in a bucket: nodes that are lost cost time and change nothing."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_jobs import checksums, environment, job
from test_object_storage import BUCKET, store  # noqa: F401  a fixture
from test_object_storage import ran as in_a_bucket  # noqa: F401  a fixture

pytestmark = pytest.mark.slow
STAGES = ("encode", "invert", "finetune", "embed", "sample", "select", "evaluate")
NODES = """
import sys
from ray.cluster_utils import Cluster
quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_timeout_ms": 2000,
         "health_check_failure_threshold": 5}
store = {"object_store_memory": 80 * 2**20}
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick, **store})
workers = [nodes.add_node(num_cpus=2, **store) for _ in range(3)]
print("at", nodes.address, flush=True)
for line in sys.stdin:  # a node is lost, another comes
    nodes.remove_node(workers.pop(0), allow_graceful=False)
    workers.append(nodes.add_node(num_cpus=2, **store))
    print("lost one", flush=True)
nodes.shutdown()
"""


@pytest.fixture
def three_nodes(store, tmp_path):  # noqa: F811
    """A process with a head and three workers: its address, and a function that loses one and adds one."""
    (tmp_path / "auth_token").write_text("cd" * 32 + "\n")
    env = environment() | store | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{tmp_path}/auth_token"}
    env |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = subprocess.Popen(
        [sys.executable, "-c", NODES], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip
    env["RAY_ADDRESS"] = next(line for line in nodes.stdout if line.startswith("at ")).split()[1]

    def lose_one():
        nodes.stdin.write("lose\n")
        nodes.stdin.flush()
        return nodes.stdout.readline()

    yield env, lose_one
    nodes.stdin.close()
    try:
        nodes.wait(timeout=60)
    finally:
        if nodes.poll() is None:
            os.killpg(nodes.pid, 9)


def test_a_node_lost_in_every_stage_changes_nothing(three_nodes, in_a_bucket, finished_run, tmp_path):  # noqa: F811
    env, lose_one = three_nodes
    words = [*in_a_bucket[0], f"storage=s3://{BUCKET}/lost", "workers={actors: 2, shards: 2}"]
    env = env | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}
    process = job("distill", *words, env=env)
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)  # a full pipe would stop the run
    reader.start()
    lost = []
    for line in process.stdout:
        stage = next((name for name in STAGES if f"] {name} " in line), None)
        if stage:
            assert lose_one() == "lost one\n"
            lost.append(stage)
    assert process.wait(timeout=600) == 0, "".join(errors)[-2000:]
    assert lost == list(STAGES)
    from ims3_ray.artifacts import open_directory

    (name,) = {n.split("/")[0] for n in open_directory(f"s3://{BUCKET}/lost/distilled").files()}
    found = open_directory(f"s3://{BUCKET}/lost/distilled/{name}").read_json("manifest.json")
    (undisturbed,) = checksums(Path(finished_run[1].distilled).parents[1])
    assert [(e["path"], e["sha256"]) for e in found["images"]] == undisturbed
