"""On a simulated GPU cluster, stages use every GPU, and load on driver and storage stays low."""

import json
import subprocess
import sys

import pytest
from loopback_store import BUCKET, Store
from processes import ROOT, environment
from tiny import MANY_IMAGES, many_words

BATCH = 8
POOLS = ("encode", "invert", "embed", "sample")
PARTS = MANY_IMAGES // BATCH  # per pool stage
BATCHES = [
    "finetune.batch_size=auto",
    *(f"{stage}.batch_size={{cpu: {BATCH}, cuda: {BATCH}}}" for stage in POOLS),
]
# maximum requests per part; BESIDE covers manifests and results
REQUESTS = {"encode": 1, "embed": 1, "sample": 1, "invert": 8, "finetune": 7, "select": 8, "export": 8}
REQUESTS |= {"evaluate": 25, "report": 6}
PER_GPU, BESIDE = 4, 60
SHAPES = [pytest.param(shape, marks=pytest.mark.chaos) for shape in ((3, 2), (8, 8))]


@pytest.fixture(scope="module", params=SHAPES, ids="{0[0]}×{0[1]}".format)
def measured(request, tmp_path_factory):
    """(nodes, total GPUs), and the measured usage by stage."""
    nodes, gpus = request.param
    folder, store = tmp_path_factory.mktemp("simulated"), Store()
    words = [*many_words(folder, f"s3://{BUCKET}/runs"), *BATCHES]
    script, out = ROOT / "tests" / "support" / "simulated.py", folder / "table.json"
    with store.running():
        env = environment() | store.variables | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        command = [sys.executable, script, out, str(nodes), str(gpus), *words]
        subprocess.run(command, env=env, check=True, timeout=3000)
    table = {stage["stage"]: stage for stage in json.loads(out.read_text())}
    for stage in table.values():
        requests = sum(stage["requests"].values())
        gigabytes, held = stage["driver"] / 1e9, f"{stage['gpus']} of {nodes * gpus}"
        print(f"| {stage['stage']} | {held} | {gigabytes:.2f} | {requests:,} | {stage['seconds']:.0f} |")
    return (nodes, nodes * gpus), table


@pytest.mark.parametrize("stage", [*POOLS, "finetune"])
def test_stage_uses_every_gpu_of_every_node(measured, stage):
    (nodes, gpus), table = measured
    assert (table[stage]["planned"], table[stage]["limit"]) == (gpus, "")
    assert (table[stage]["nodes"], table[stage]["gpus"]) == (nodes, gpus)


def test_each_classifier_has_its_own_gpu_while_there_are_enough(measured):
    (_, gpus), table = measured
    assert table["evaluate"]["planned"] == table["evaluate"]["gpus"] == min(gpus, 6)


@pytest.mark.parametrize("stage", ["select", "export", "report"])
def test_cpu_stages_run_on_the_node_without_gpus(measured, stage):
    _, table = measured
    assert table[stage]["gpus"] == table[stage]["cpus"]["with GPUs"] == 0


def test_driver_memory_stays_below_one_gigabyte(measured):
    _, table = measured
    assert max(stage["driver"] for stage in table.values()) < 1e9


@pytest.mark.parametrize("stage", REQUESTS)
def test_storage_requests_per_part_do_not_grow_with_workers(measured, stage):
    (_, gpus), table = measured
    requests = sum(table[stage]["requests"].values())
    assert requests < REQUESTS[stage] * PARTS + PER_GPU * gpus + BESIDE, table[stage]["requests"]
