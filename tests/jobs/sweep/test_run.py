"""A search on the tiny model: what trials share, resume, failures, MLflow."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import yaml
from printed import job as job_of
from printed import next_commands
from processes import environment, finished, started_until
from tiny import tiny_words
from tracking_server import Server

from ims3_ray.config.load import parse_overrides
from ims3_ray.jobs.sweep.plan import Sweep
from ims3_ray.jobs.sweep.run import run
from ims3_ray.jobs.sweep.search_space import read_space
from ims3_ray.jobs.sweep.trial import read_trials
from ims3_ray.runs import mlflow_tracker, tags
from ims3_ray.runs.records import RUNNING
from ims3_ray.storage.artifacts import open_storage

SPACE = ["ipc=2,4", "sample.subgroups=2,3"]
KEPT = ("latents", "inversions", "adapter", "features", "candidates")  # made once


def words_of(model, images, storage):
    """A tiny recipe whose validation images are held out of its training images."""
    kept = [word for word in tiny_words(model, images, storage) if not word.startswith("ipc=")]
    return [*kept, "data.validation_split=0.2", "evaluate.neighbours=2"]


def plan_of(words, space=SPACE, search="grid", trials=8, **options):
    overrides = parse_overrides(list(words))
    options |= {"space": read_space(space, "digits-paper", overrides), "search": search, "trials": trials}
    return Sweep(recipe="digits-paper", overrides=overrides, **options)


def say_nothing(line):
    pass


def runs_of(storage, key):
    """(client, parent, children) of a sweep in MLflow."""
    directory = open_storage(str(storage))
    client = mlflow_tracker.client(directory)
    experiment = mlflow_tracker.experiment_id(client, directory)
    (parent,) = client.search_runs([experiment], f"tags.`{tags.RUN}` = '{key}'")
    children = client.search_runs([experiment], f"tags.`{tags.PARENT}` = '{parent.info.run_id}'")
    return client, parent, children


@pytest.fixture(scope="module")
def ran(ray_cluster, tiny_model, tiny_images, tmp_path_factory):
    """A finished grid: its plan, storage, what it said, document and folder."""
    storage = tmp_path_factory.mktemp("sweep") / "runs"
    plan, said = plan_of(words_of(tiny_model, tiny_images, storage)), []
    return plan, storage, said, *run(plan, said.append)


@pytest.fixture
def words(ran, tiny_model, tiny_images):
    """Of a sweep that finds what `ran` made."""
    return words_of(tiny_model, tiny_images, ran[1])


def manifests(storage):
    """Every artefact that is complete, and when it was made."""
    return {p.parent: p.stat().st_mtime_ns for p in Path(storage).glob("*/*/manifest.json")}


def statuses(document):
    return [trial["status"] for trial in document["trials"]]


@pytest.mark.slow
def test_a_sweep_samples_once_and_selects_once_a_trial(ran):
    _, storage, said, document, folder = ran
    made = Counter(path.parent.name for path in manifests(storage))
    assert made == dict.fromkeys(KEPT, 1) | dict.fromkeys(("selection", "distilled", "evaluation"), 4)
    assert statuses(document) == ["finished"] * 4
    (pool,) = document["pools"]
    assert pool["trials"] == 4
    once = [json.loads(path.read_text()) for noun in KEPT for path in storage.glob(f"{noun}/*/manifest.json")]
    alone = sum(manifest["seconds"] for manifest in once)
    assert document["saved_seconds"] == pytest.approx(3 * alone, abs=0.01)
    assert sum(line.startswith("sample →") for line in said) == 1
    for ipc, number in document["best"].items():
        winner = yaml.safe_load(folder.read(f"best-ipc{ipc}.yaml"))
        assert winner["ipc"] == int(ipc) == document["trials"][number]["values"]["ipc"]
        assert (winner["evaluate"]["protocol"], winner["evaluate"]["full"]) == ("smoke", True)


@pytest.mark.slow
def test_mlflow_holds_the_sweep_with_a_child_for_every_trial(ran):
    _, storage, _, document, _ = ran
    client, parent, children = runs_of(storage, document["key"])
    assert (parent.data.tags["kind"], parent.info.status) == ("sweep", "FINISHED")
    assert {(c.data.tags["kind"], c.info.status) for c in children} == {("trial", "FINISHED")}
    assert sorted(int(c.data.tags["trial"]) for c in children) == list(range(4))
    assert len({c.data.tags["artifact.candidates"] for c in children}) == 1
    selections = {path.name for path in (storage / "selection").iterdir()}
    assert {c.data.tags["artifact.selection"] for c in children} == selections
    by_id = {child.info.run_id: child.data for child in children}
    for trial in document["trials"]:
        data = by_id[trial["mlflow_run_id"]]
        assert data.metrics["accuracy"] == pytest.approx(trial["metrics"]["accuracy"])
        assert data.params["ipc"] == str(trial["values"]["ipc"])
    curve = client.get_metric_history(children[0].info.run_id, "evaluate/distilled_accuracy")
    assert [point.step for point in curve] == [3, 6]
    logged = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert logged == {"sweep.json", "sweep.csv", "index.html", "best-ipc2.yaml", "best-ipc4.yaml"}


@pytest.mark.slow
def test_the_same_command_again_and_the_winners_recipe_find_all_that_was_made(ran, cluster_environment):
    plan, storage, _, document, folder = ran
    before = manifests(storage)
    again, same = run(plan, say_nothing)
    assert (manifests(storage), same) == (before, folder)
    lasting = document.keys() - {"written", "seconds"}
    assert {name: again[name] for name in lasting} == {name: document[name] for name in lasting}
    assert len(runs_of(storage, document["key"])[2]) == 4
    words = ("--recipe", f"{folder.path}/best-ipc4.yaml", f"storage={storage}", "workers.actors=1")
    code, out, err = finished("distill", *words, env=environment() | cluster_environment)
    assert code == 0, err
    fresh = Counter(path.parent.name for path in manifests(storage).keys() - before.keys())
    assert fresh == {"evaluation": 1, "report": 1}  # on the test images
    assert "accuracy on the test images" in out


@pytest.mark.slow
def test_a_failed_trial_is_recorded_with_its_error_and_the_others_go_on(ran, words):
    words = [*words, "ipc=4", "refine.steps=1", "probe.count=1", "probe.checkpoint_steps=[0]"]
    plan = plan_of(words, ["refine.lr=1e30,0.01", "finetune.lr=1e30,1e-4"])
    document, _ = run(plan, say_nothing)
    assert statuses(document) == ["failed", "failed", "failed", "finished"]
    errors = [(trial["error"] or ":").split(":")[1].strip() for trial in document["trials"]]
    assert errors == ["finetune.lr", "refine.lr", "finetune.lr", ""]
    _, _, children = runs_of(ran[1], document["key"])
    assert Counter(c.info.status for c in children) == {"FAILED": 3, "FINISHED": 1}
    assert any("refine.lr" in c.data.tags.get("error", "") for c in children)


@pytest.mark.slow
def test_a_bayesian_search_resumes_a_killed_drivers_trials_and_gives_a_pareto_front(words):
    words = [*words, "ipc=4", "sample.pool_ipc=4"]
    alpha, other = "select.alpha=0.1:0.9", "select.normalization=per_class,none"
    options = {"search": "bayes", "objective": ("accuracy", "coverage")}
    plan = plan_of(words, [alpha, other], trials=3, **options)
    document, folder = run(plan, say_nothing)
    assert statuses(document) == ["finished"] * 3
    assert document["pareto"]
    read_trials(folder)[2].write(folder, state=RUNNING)  # as if the driver had been killed
    again = run(plan, say_nothing)[0]
    assert statuses(again) == ["finished"] * 3
    assert again["trials"][:2] == document["trials"][:2]
    sections = "select={coverage: 0},{unit: image, coverage: 1}"
    assert (
        statuses(run(plan_of(words, [sections, alpha], trials=2, **options), say_nothing)[0])
        == ["finished"] * 2
    )


@pytest.mark.slow
def test_trials_that_fall_behind_are_stopped(ran, words):
    space = ["ipc=2,4", "select.beta=0.1,0.2,0.3,0.4,0.6,0.7"]
    plan = plan_of([*words, "workers.trials=1"], space, asha=True)
    document, _ = run(plan, say_nothing)
    counts = Counter(statuses(document))
    assert {t["values"]["ipc"] for t in document["trials"] if t["status"] == "finished"} == {2, 4}
    assert counts["stopped"] == 12 - counts["finished"] > 0
    _, _, children = runs_of(ran[1], document["key"])
    ends = Counter(c.info.status for c in children)
    assert ends == {"FINISHED": counts["finished"], "KILLED": counts["stopped"]}
    assert all("accuracy" not in c.data.metrics for c in children if c.info.status == "KILLED")


@pytest.fixture
def tracking_server(tmp_path, monkeypatch):
    server = Server(tmp_path)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server.uri
    server.stop()


@pytest.mark.chaos
def test_a_killed_sweep_resumes_and_neither_loses_nor_doubles_a_run(
    ran, cluster_environment, tracking_server, tiny_model, tiny_images, tmp_path
):
    undisturbed, storage = ran[3], tmp_path / "runs"
    words = [*words_of(tiny_model, tiny_images, storage), "workers.trials=4", "--space", *SPACE]
    env = environment() | cluster_environment | {"MLFLOW_TRACKING_URI": tracking_server}
    process = started_until(r"^\[2/4]", "sweep", *words, env=env)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    over = {p: p.stat().st_mtime_ns for p in storage.glob("evaluation/*/manifest.json")}
    assert len(over) >= 2
    code, out, err = finished("sweep", *words, env=env)
    assert code == 0, err
    assert "4 finished" in out
    assert [job_of(words)[0] for words in next_commands(out).values()] == ["distill", "runs"]
    assert {p: p.stat().st_mtime_ns for p in over} == over
    (place,) = storage.glob("sweeps/*/sweep.json")
    document = json.loads(place.read_text())
    assert (document["best"], document["key"]) == (undisturbed["best"], undisturbed["key"])
    assert [t["metrics"] for t in document["trials"]] == [t["metrics"] for t in undisturbed["trials"]]
    _, parent, children = runs_of(storage, document["key"])
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 5
    assert {int(c.data.tags["trial"]) for c in children} == set(range(4))
    assert all("accuracy" in c.data.metrics for c in children)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--space: is empty"),
        (["--space", "ipc=1,2", "--objective", "loss"], "'loss' is a metric that no trial reports"),
        (["data.validation=null", "--space", "ipc=1,2"], "data.validation: protocol quick-val scores on"),
    ],
)
def test_an_invalid_sweep_gives_one_line_and_exit_code_2(words, said, refused, tmp_path):
    assert said in refused("sweep", f"storage={tmp_path / 'runs'}", *words)
    assert not (tmp_path / "runs" / "sweeps").exists()
