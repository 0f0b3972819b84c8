"""Rebuilding MLflow's runs from records, and queries from records if MLflow is unreachable."""

import json
import os

import pytest
from viewed import ARTIFACTS, make_artifacts

from ims3_ray.cli import main
from ims3_ray.config.load import load_config
from ims3_ray.evaluation.results import CURVE
from ims3_ray.jobs.runs.rebuild import rebuild
from ims3_ray.runs import query, records, tags
from ims3_ray.runs.event_log import EventLog
from ims3_ray.runs.mlflow_tracker import client
from ims3_ray.storage.artifacts import open_directory, open_storage

NOWHERE = "http://127.0.0.1:9"
STATES = {"aaaa": records.FINISHED, "bbbb": records.FAILED, "cccc": records.STOPPED, "dddd": records.RUNNING}
ENDS = {"aaaa": "FINISHED", "bbbb": "FAILED", "cccc": "KILLED"}
OWN = {tags.KIND: tags.DISTILLATION, tags.PROTOCOL: "quick-v1/n", tags.SCORED: "ours", "command": "x"}


def make_record(storage, key, state, **changes):
    config = load_config("digits", {"ipc": 2, "seed": int(key, 16)}).model_dump(mode="json")
    details = {"recipe": "digits", "config": config, "tags": OWN}
    details |= {"versions": {"ray": "2.60.0"}, "hardware": {"cpus": 2}}
    unmade = {} if state == records.FINISHED else {"evaluation": "0" * 12, "report": "1" * 12}
    places = {noun: f"/elsewhere/{noun}/{name}" for noun, name in (ARTIFACTS | unmade).items()}
    records.write(storage, f"runs/digits-{key}/run.json", places, key=key, state=state, **(details | changes))
    EventLog(storage / "runs" / f"digits-{key}").write("run started")


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A finished run with its artefacts, and records of three unfinished runs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = open_storage(str(tmp_path / "runs"))
    make_artifacts(root)
    (root / "report" / ARTIFACTS["report"]).write("contact-sheet.png", b"PNG")
    for key, state in STATES.items():
        make_record(root, key, state)
    return root


@pytest.fixture
def ask(storage, capsys):
    """Run the command; returns its JSON document and the lines on standard error."""

    def asked(*words):
        capsys.readouterr()
        assert main(["runs", *words, "--json", f"storage={storage.path}"]) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err.splitlines()

    return asked


def by_key(storage):
    return {run["key"]: run for run in query.find_runs(client(storage))}


def statuses(runs):
    return {run["key"]: run["status"] for run in runs}


def test_every_record_becomes_one_run_however_often_it_is_rebuilt(storage, ask):
    answer, _ = ask("--rebuild-mlflow")
    assert answer == {"runs": 4, "written": 4, "skipped": 0}
    found = by_key(storage)
    assert statuses(found.values()) == ENDS | {"dddd": "RUNNING"}
    whole = found["aaaa"]
    assert (whole["name"], whole["params"]["seed"]) == ("digits-aaaa", str(0xAAAA))
    assert not [name for name in whole["params"] if name.startswith(("workers", "storage", "data.root"))]
    assert (OWN | {"artifact.selection": ARTIFACTS["selection"]}).items() <= whole["tags"].items()
    assert {"accuracy", "sample/seconds", "evaluate/rows_per_s"} <= set(whole["metrics"])
    assert "accuracy" not in found["bbbb"]["metrics"]
    logged = {file.path for file in client(storage).list_artifacts(whole["run_id"])}
    assert logged == {"recipe.yaml", "index.html", "contact-sheet.png"}
    ask("--rebuild-mlflow")
    assert by_key(storage) == found
    assert len(query.find_runs(client(storage))) == 4


def test_a_damaged_record_and_one_of_an_earlier_version_are_skipped(storage):
    storage.write("runs/digits-bbbb/run.json", b"{")
    make_record(storage, "aaaa", records.FINISHED, tags=None)
    lines = []
    assert rebuild(storage, storage, lines.append) == (2, 2)
    assert ["digits-aaaa" in line or "digits-bbbb" in line for line in lines] == [True, True]


@pytest.mark.parametrize("is_named", [True, False])
def test_queries_use_the_records_if_mlflow_cannot_be_reached(storage, ask, monkeypatch, is_named):
    if is_named:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    answer, lines = ask("--where", "ipc=2")
    assert statuses(answer["runs"]) == ENDS | {"dddd": "DEAD"}
    (line,) = lines
    assert line.startswith("note: ")
    assert ("127.0.0.1:9" if is_named else "mlflow.db") in line
    best, _ = ask("--best")
    assert [row["run"]["key"] for row in best["best"]] == ["aaaa"]
    assert os.environ.get("MLFLOW_TRACKING_URI") == (NOWHERE if is_named else None)
    assert not storage.exists("mlflow.db")


def test_a_rebuilt_run_equals_the_live_run(finished_run, tmp_path):
    made = finished_run[1]
    storage = open_directory(made.distilled.rsplit("/", 2)[0])
    tracked = open_storage(str(tmp_path / "tracked"))
    rebuild(storage, tracked, pytest.fail)

    def seen(place):
        run, asked = by_key(place)[made.key], client(place)
        history = {name: asked.get_metric_history(run["run_id"], name) for name in run["metrics"]}
        inputs = [data.dataset.digest for data in asked.get_run(run["run_id"]).inputs.dataset_inputs]
        files = {file.path for file in asked.list_artifacts(run["run_id"])}
        points = {name: [(point.step, point.value) for point in held] for name, held in history.items()}
        curve = list(zip(*points.pop(f"evaluate/{CURVE}"), strict=True))
        return curve, [points, files, inputs, *map(run.get, ("name", "status", "params", "tags"))]

    ((steps, means), live), ((steps_again, means_again), again) = seen(storage), seen(tracked)
    assert steps_again == steps
    assert means_again == pytest.approx(means)  # the seeds' order in a live sum is that of their ends
    assert again == live
