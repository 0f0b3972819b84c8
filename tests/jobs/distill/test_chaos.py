"""A run on several nodes ends with the same bytes, whichever process or node is killed."""

import os
from collections import Counter
from pathlib import Path

import pytest
from monkey import DRIVER, KINDS, NODE, PROCESSES, Nodes, faults, run_under_fire
from processes import checksums, environment
from tiny import tiny_words

from ims3_ray.runs import mlflow_tracker, tags
from ims3_ray.storage.artifacts import open_storage

NODES = 3
ON = ["workers={actors: 2, shards: 2, train_workers: 2, device: cpu}"]
RUNS = 9
SELECTION, EVALUATION = "selection actor", "evaluation actor"
SEED = int(os.environ.get("CHAOS_SEED", "0"))
# seconds from the first process of a kind to a kill; selection and evaluation are soon over
LONGEST_S = dict.fromkeys(KINDS, 2.0) | {SELECTION: 0.3, EVALUATION: 0.3}
FAULTS = {kind: faults(kind, RUNS, SEED, LONGEST_S[kind]) for kind in KINDS}
FAULTS[DRIVER] = FAULTS[DRIVER][4:] + FAULTS[DRIVER][:4]  # not in the stage that loses a node


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    made = Nodes(NODES, tmp_path_factory.mktemp("nodes"), environment())
    yield made
    made.end()


@pytest.fixture(autouse=True)
def mended(request):
    if "nodes" in request.fixturenames:
        request.getfixturevalue("nodes").mend()


@pytest.fixture
def words(tiny_model, tiny_images, tmp_path):
    return [*tiny_words(tiny_model, tiny_images, tmp_path / "runs"), *ON, "evaluate.full=false"]


@pytest.fixture(scope="module")
def table():
    """Rows of the table in docs/failures.md: a Counter of (kind, outcome)."""
    counts: Counter = Counter()
    yield counts
    print("\n| killed | kills | runs finished | results equal |\n|---|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {counts[kind, 'kills']} | {counts[kind, 'finished']} | {counts[kind, 'equal']} |")


def count(table, outcome, is_equal):
    print(f"{outcome.seconds:.0f} s, {', '.join(outcome.killed)}")
    for line in outcome.killed:
        kind = next(kind for kind in (*PROCESSES, NODE, DRIVER) if kind in line.partition(" in ")[0])
        table[kind, "kills"] += 1
        table[kind, "finished"] += outcome.code == 0
        table[kind, "equal"] += is_equal
    assert outcome.code == 0, outcome
    assert is_equal, outcome


def results(storage, run_id=None):
    """Checksums of the distilled images, and MLflow's loss curve of the run `run_id` or the only one."""
    root = open_storage(str(storage))
    client = mlflow_tracker.client(root)
    if run_id is None:
        ours = f"tags.`{tags.KIND}` = '{tags.DISTILLATION}'"
        (run,) = client.search_runs([mlflow_tracker.experiment_id(client, root)], ours)
        run_id = run.info.run_id
    points = client.get_metric_history(run_id, "finetune/diffusion")
    return checksums(storage), sorted((point.step, point.value) for point in points)


@pytest.fixture(scope="module")
def undisturbed(finished_run, finished_images):
    made = finished_run[1]
    return finished_images, results(Path(made.distilled).parents[1], made.mlflow_run_id)[1]


@pytest.mark.chaos
@pytest.mark.parametrize("number", range(RUNS))
def test_one_kill_of_each_kind_at_random_moments_changes_nothing(
    number, undisturbed, nodes, words, tmp_path, table
):
    planned = [FAULTS[kind][number] for kind in KINDS]
    # evaluate long enough for a kill to come in time
    outcome = run_under_fire([*words, "evaluate.seeds=8"], nodes, planned, timeout=1800)
    count(table, outcome, results(tmp_path / "runs") == undisturbed)
    assert len(outcome.killed) == len(planned), outcome
