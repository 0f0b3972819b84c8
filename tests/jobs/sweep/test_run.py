"""jobs/sweep.py on the tiny model: what trials share, how a sweep goes on, what MLflow holds, what is
refused.
"""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import yaml
from processes import environment, finished, job
from tiny import tiny_words
from tracking_server import Server

from ims3_ray.config.load import parse_overrides
from ims3_ray.jobs.sweep import records
from ims3_ray.jobs.sweep import run as sweeping
from ims3_ray.jobs.sweep.plan import Sweep, trial_key
from ims3_ray.jobs.sweep.space import read_space
from ims3_ray.runs import tags, tracking
from ims3_ray.storage.artifacts import open_storage

SPACE = ["select.alpha=0.2,0.8", "ipc=2,4", "sample.subgroups=2,3"]


def words_of(model, images, storage):
    """A tiny recipe whose validation images are held out of its training images."""
    kept = [word for word in tiny_words(model, images, storage) if not word.startswith("ipc=")]
    return [*kept, "data.validation_split=0.2", "evaluate.neighbours=2"]


def sweep(words, space=SPACE, search="grid", **options):
    overrides = parse_overrides(list(words))
    return Sweep(
        "digits",
        overrides,
        read_space(space, "digits", overrides),
        search,
        options.pop("trials", 8),
        **options,
    )


def runs_of(storage, key):
    """(parent, children) of a sweep in MLflow."""
    directory = open_storage(str(storage))
    client = tracking.client(directory)
    experiment = tracking.experiment_id(client, directory)
    (parent,) = client.search_runs([experiment], f"tags.`{tags.RUN}` = '{key}'")
    children = client.search_runs([experiment], f"tags.`{tags.PARENT}` = '{parent.info.run_id}'")
    return parent, children


@pytest.fixture(scope="module")
def ran(ray_cluster, tiny_model, tiny_images, tmp_path_factory):
    """A finished grid: its plan, storage, what it said, document and folder."""
    storage = tmp_path_factory.mktemp("sweep") / "runs"
    plan, said = sweep(words_of(tiny_model, tiny_images, storage)), []
    return plan, storage, said, *sweeping.run(plan, said.append)


def manifests(storage):
    """Every artefact that is complete, and when it was made."""
    return {p.parent: p.stat().st_mtime_ns for p in Path(storage).glob("*/*/manifest.json")}


def test_a_sweep_samples_once_and_selects_once_a_trial(ran):
    _, storage, said, document, _ = ran
    made = Counter(path.parent.name for path in manifests(storage))
    once = dict.fromkeys(("latents", "inversions", "adapter", "features", "candidates"), 1)
    assert made == once | dict.fromkeys(("selection", "distilled", "evaluation"), 8)
    assert [t["status"] for t in document["trials"]] == ["finished"] * 8
    (pool,) = document["pools"]
    assert (pool["trials"], pool["images"], pool["made"]) == (8, 3 * 4 * 3, True)
    alone = sum(
        json.loads(m.read_text())["seconds"] for noun in once for m in storage.glob(f"{noun}/*/manifest.json")
    )
    assert document["saved_seconds"] == pytest.approx(7 * alone, abs=0.01)
    assert sum(line.startswith("sample →") for line in said) == 1


def test_the_same_command_again_runs_nothing_and_says_the_same(ran):
    plan, storage, _, document, folder = ran
    before, said = manifests(storage), []
    again, same = sweeping.run(plan, said.append)
    assert manifests(storage) == before
    assert same == folder
    differing = ("written", "seconds", "pools")
    assert {k: v for k, v in again.items() if k not in differing} == {
        k: v for k, v in document.items() if k not in differing
    }
    assert [pool["made"] for pool in again["pools"]] == [False]
    assert len(runs_of(storage, plan.key)[1]) == 8


def test_the_best_of_each_ipc_is_the_best_trial_and_its_recipe_finds_all_that_the_trial_made(
    ran, cluster_environment
):
    _, storage, _, document, folder = ran
    for ipc, number in document["best"].items():
        rivals = [t for t in document["trials"] if t["values"]["ipc"] == int(ipc)]
        assert document["trials"][number]["metrics"]["accuracy"] == max(
            t["metrics"]["accuracy"] for t in rivals
        )
    before = manifests(storage)
    recipe = f"{folder.path}/best-ipc4.yaml"
    config = yaml.safe_load(Path(recipe).read_text())
    assert config["evaluate"]["protocol"] == "smoke"
    assert config["evaluate"]["full"] is True
    env = environment() | cluster_environment
    code, out, err = finished(
        "distill", "--recipe", recipe, f"storage={storage}", "workers.actors=1", env=env
    )
    assert code == 0, err
    fresh = Counter(path.parent.name for path in manifests(storage).keys() - before.keys())
    assert fresh == {"evaluation": 1, "report": 1}  # on the test images
    assert "accuracy on the test images" in out


def test_mlflow_holds_the_sweep_with_a_child_for_every_trial(ran):
    plan, storage, _, document, _ = ran
    parent, children = runs_of(storage, plan.key)
    assert parent.data.tags["kind"] == "sweep"
    assert parent.info.status == "FINISHED"
    assert {c.info.status for c in children} == {"FINISHED"}
    assert {c.data.tags["kind"] for c in children} == {"trial"}
    assert sorted(int(c.data.tags["trial"]) for c in children) == list(range(8))
    assert len({c.data.tags["artifact.candidates"] for c in children}) == 1
    assert {c.data.tags["artifact.selection"] for c in children} == {
        p.name for p in (storage / "selection").iterdir()
    }
    by_id = {child.info.run_id: child for child in children}
    for trial in document["trials"]:
        data = by_id[trial["mlflow_run_id"]].data
        assert data.metrics["accuracy"] == pytest.approx(trial["metrics"]["accuracy"])
        assert {field: data.params[field] for field in ("ipc", "select.alpha")} == {
            field: str(trial["values"][field]) for field in ("ipc", "select.alpha")
        }
    directory = open_storage(str(storage))
    client = tracking.client(directory)
    curve = client.get_metric_history(children[0].info.run_id, "evaluate/distilled_accuracy")
    assert [(m.step) for m in curve] == [3, 6]
    logged = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert logged == {"sweep.json", "sweep.csv", "index.html", "best-ipc2.yaml", "best-ipc4.yaml"}


def test_a_trial_that_fails_is_recorded_with_its_error_and_the_others_go_on(ran, tiny_model, tiny_images):
    _, storage, *_ = ran  # whose pool serves
    words = [*words_of(tiny_model, tiny_images, storage), "ipc=4", "select.unit=image", "select.coverage=1"]
    plan = sweep(words, ["select.coverage_neighbours=50,2", "select.beta=0.3,0.5"])
    document, _ = sweeping.run(plan, lambda line: None)
    assert [t["status"] for t in document["trials"]] == ["failed", "failed", "finished", "finished"]
    assert document["trials"][0]["error"].startswith(
        "InputError: select.coverage_neighbours: needs more than 50"
    )
    _, children = runs_of(storage, plan.key)
    assert Counter(c.info.status for c in children) == {"FAILED": 2, "FINISHED": 2}
    assert any("coverage_neighbours" in c.data.tags.get("error", "") for c in children)
    before = manifests(storage)
    again, _ = sweeping.run(plan, lambda line: None)  # what failed is tried again, what is over is not
    assert [t["status"] for t in again["trials"]] == ["failed", "failed", "finished", "finished"]
    assert manifests(storage) == before
    assert len(runs_of(storage, plan.key)[1]) == 4


def test_a_bayesian_search_goes_on_from_what_is_over_and_gives_a_pareto_front(ran, tiny_model, tiny_images):
    _, storage, *_ = ran
    words = [*words_of(tiny_model, tiny_images, storage), "ipc=4", "sample.pool_ipc=4"]
    space = [
        "select.alpha=0.1:0.9",
        "select.normalization=per_class,none",
        "select={coverage: 0},{unit: image, coverage: 1}",
    ]
    options = {"search": "bayes", "objective": ("accuracy", "coverage")}
    plan = sweep(words, space[:2], trials=3, **options)
    document, folder = sweeping.run(plan, lambda line: None)
    assert [t["status"] for t in document["trials"]] == ["finished"] * 3
    assert document["pareto"]
    kept = {t["number"]: t for t in document["trials"][:2]}
    gone = records.read_trials(folder)[2]
    # as if the driver had died before its end
    os.remove(f"{folder.path}/trials/{trial_key(gone.values)}.json")
    again = sweeping.run(plan, lambda line: None)[0]["trials"]
    assert len(again) == 3
    assert {t["number"]: t for t in again if t["number"] in kept} == kept
    wider = sweep(words, [space[2], space[0]], trials=2, **options)
    assert [t["status"] for t in sweeping.run(wider, lambda line: None)[0]["trials"]] == ["finished"] * 2


def test_trials_that_fall_behind_are_stopped_among_their_own_ipc(ran, tiny_model, tiny_images):
    _, storage, *_ = ran
    words = words_of(tiny_model, tiny_images, storage)
    plan = sweep([*words, "workers.trials=1"], ["ipc=2,4", "select.beta=0.1,0.2,0.3,0.4,0.6,0.7"], asha=True)
    document, _ = sweeping.run(plan, lambda line: None)
    statuses = Counter((t["values"]["ipc"], t["status"]) for t in document["trials"])
    assert sum(statuses.values()) == 12
    assert all(statuses[ipc, "finished"] for ipc in (2, 4))
    stopped = [t for t in document["trials"] if t["status"] == "stopped"]
    assert stopped, statuses
    _, children = runs_of(storage, plan.key)
    assert Counter(c.info.status for c in children) == {"FINISHED": 12 - len(stopped), "KILLED": len(stopped)}
    assert all("accuracy" not in c.data.metrics for c in children if c.info.status == "KILLED")


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_goes_on_where_it_was(
    ran, ray_cluster, cluster_environment, tiny_model, tiny_images, tmp_path
):
    undisturbed = ran[3]
    words, storage = words_of(tiny_model, tiny_images, tmp_path / "runs"), tmp_path / "runs"
    env = environment() | cluster_environment
    process = job("sweep", *words, "--space", *SPACE, env=env)
    for line in process.stdout:
        if line.startswith("[2/8]"):
            break
    else:
        pytest.fail(process.stderr.read())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    over = {p: p.stat().st_mtime_ns for p in storage.glob("evaluation/*/manifest.json")}
    assert len(over) >= 2
    code, out, err = finished("sweep", *words, "--space", *SPACE, env=env)
    assert code == 0, err
    assert "8 finished" in out
    assert "winner   python jobs/distill.py --recipe" in out
    assert {p: p.stat().st_mtime_ns for p in over} == over
    (place,) = storage.glob("sweeps/*/sweep.json")
    document = json.loads(place.read_text())
    for name in ("best", "key"):
        assert document[name] == undisturbed[name]
    assert [t["metrics"] for t in document["trials"]] == [t["metrics"] for t in undisturbed["trials"]]
    parent, children = runs_of(storage, document["key"])
    assert (len(children), {c.info.status for c in children}) == (
        8,
        {"FINISHED"},
    )
    assert parent.info.status == "FINISHED"


@pytest.fixture(scope="module")
def tracking_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server.uri
    server.stop()


@pytest.mark.slow
def test_four_trials_at_once_lose_and_double_no_run_on_a_tracking_server(
    ran, tracking_server, cluster_environment, tiny_model, tiny_images
):
    _, storage, *_ = ran
    words = [*words_of(tiny_model, tiny_images, storage), "workers.trials=4", "seed=0"]
    env = environment() | cluster_environment | {"MLFLOW_TRACKING_URI": tracking_server}
    code, _, err = finished("sweep", *words, "--space", "select.beta=0.15,0.25,0.35,0.45", "ipc=2,4", env=env)
    assert code == 0, err
    import mlflow

    mlflow.set_tracking_uri(tracking_server)
    try:
        found = mlflow.search_runs(experiment_names=["ims3_ray"])
    finally:
        mlflow.set_tracking_uri(None)
    kinds = Counter(found["tags.kind"])
    assert kinds == {"sweep": 1, "trial": 8}
    assert set(found["status"]) == {"FINISHED"}
    trials = found[found["tags.kind"] == "trial"]
    assert len(set(trials["tags.trial"])) == 8
    assert trials["metrics.accuracy"].notna().all()
    assert set(trials["tags.mlflow.parentRunId"]) == set(found[found["tags.kind"] == "sweep"]["run_id"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--space", "select.alfa=0.1,0.2"], "select.alfa: unknown field; did you mean alpha?"),
        ([], "--space: is empty"),
        (["--space", "ipc=1,2", "--objective", "loss"], "'loss' is a metric that no trial reports"),
        (["--space", "ipc=1,2", "--search", "bayes", "--trials", "0"], "--trials: 0"),
        (["data.validation=null", "--space", "ipc=1,2"], "data.validation: protocol quick-val scores on it"),
    ],
)
def test_a_sweep_that_can_not_be_gives_one_line_and_exit_code_2(words, said, capsys, tmp_path):
    from ims3_ray.cli import run_command

    assert run_command("sweep", [f"storage={tmp_path / 'runs'}", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs" / "sweeps").exists()
