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
OWN = {
    tags.KIND: tags.DISTILLATION,
    tags.PROTOCOL: "quick-v1/n",
    tags.SCORED: "ours",
    "command": "jobs/distill",
}


def make_record(storage, key, state, **changes):
    config = load_config("digits", {"ipc": 2, "seed": int(key, 16)})
    details = {
        "recipe": "digits",
        "config": config.model_dump(mode="json"),
        "versions": {"ray": "2.60.0"},
        "hardware": {"cpus": 2},
        "tags": OWN,
    }
    places = {noun: f"/elsewhere/{noun}/{name}" for noun, name in ARTIFACTS.items()}
    if state != records.FINISHED:
        places |= {
            "evaluation": f"/elsewhere/evaluation/{'0' * 12}",
            "report": f"/elsewhere/report/{'1' * 12}",
        }
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


def test_every_record_becomes_one_run_however_often_it_is_rebuilt(storage, ask):
    answer, _ = ask("--rebuild-mlflow")
    assert answer == {"runs": 4, "written": 4}
    found = by_key(storage)
    assert {key: run["status"] for key, run in found.items()} == {
        "aaaa": "FINISHED", "bbbb": "FAILED", "cccc": "KILLED", "dddd": "RUNNING"
    }  # fmt: skip
    whole = found["aaaa"]
    assert whole["name"] == "digits-aaaa"
    assert (whole["params"]["ipc"], whole["params"]["seed"]) == ("2", str(0xAAAA))
    assert not [name for name in whole["params"] if name.startswith(("workers", "storage", "data.root"))]
    assert {name: whole["tags"][name] for name in OWN} == OWN
    assert whole["tags"]["artifact.selection"] == ARTIFACTS["selection"]
    assert {"accuracy", "sample/seconds", "evaluate/rows_per_s"} <= set(whole["metrics"])
    assert "accuracy" not in found["bbbb"]["metrics"]
    logged = {file.path for file in client(storage).list_artifacts(whole["run_id"])}
    assert logged == {"recipe.yaml", "index.html", "contact-sheet.png"}
    inputs = client(storage).get_run(whole["run_id"]).inputs.dataset_inputs
    assert [data.dataset.digest for data in inputs] == [ARTIFACTS["distilled"]]

    ask("--rebuild-mlflow")
    assert by_key(storage) == found
    assert len(query.find_runs(client(storage))) == 4


def test_a_damaged_record_and_one_of_an_earlier_version_are_skipped(storage):
    storage.write("runs/digits-bbbb/run.json", b"{")
    make_record(storage, "aaaa", records.FINISHED, tags=None)
    lines = []
    assert rebuild(storage, storage, lines.append) == 2
    assert ["digits-aaaa" in line or "digits-bbbb" in line for line in lines] == [True, True]


@pytest.mark.parametrize("is_named", [True, False])
def test_queries_use_the_records_if_mlflow_cannot_be_reached(storage, ask, monkeypatch, is_named):
    if is_named:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    answer, lines = ask("--where", "ipc=2")
    states = {run["key"]: run["status"] for run in answer["runs"]}
    assert states == {"aaaa": "FINISHED", "bbbb": "FAILED", "cccc": "KILLED", "dddd": "DEAD"}
    (line,) = lines
    assert line.startswith("note: ")
    assert ("127.0.0.1:9" if is_named else "mlflow.db") in line
    best, _ = ask("--best")
    assert [row["run"]["key"] for row in best["best"]] == ["aaaa"]
    assert os.environ.get("MLFLOW_TRACKING_URI") == (NOWHERE if is_named else None)
    assert not storage.exists("mlflow.db")


def test_an_unreachable_server_without_records_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    empty = open_storage(str(tmp_path / "empty"))
    assert main(["runs", f"storage={empty.path}"]) == 2
    assert "MLFLOW_TRACKING_URI" in capsys.readouterr().err


def test_a_rebuilt_run_equals_the_live_run(finished_run, tmp_path):
    made = finished_run[1]
    storage = open_directory(made.distilled.rsplit("/", 2)[0])
    tracked = open_storage(str(tmp_path / "tracked"))
    rebuild(storage, tracked, pytest.fail)

    def seen(place):
        run = by_key(place)[made.key]
        files = {file.path for file in client(place).list_artifacts(run["run_id"])}
        points = {
            name: [
                (point.step, point.value) for point in client(place).get_metric_history(run["run_id"], name)
            ]
            for name in run["metrics"]
        }
        inputs = [data.dataset.digest for data in client(place).get_run(run["run_id"]).inputs.dataset_inputs]
        return {name: run[name] for name in ("name", "status", "params", "tags")} | {
            "files": files, "points": points, "inputs": inputs
        }  # fmt: skip

    live, again = seen(storage), seen(tracked)
    curve = f"evaluate/{CURVE}"
    assert [step for step, _ in live["points"][curve]] == [step for step, _ in again["points"][curve]]
    means = [[mean for _, mean in of["points"].pop(curve)] for of in (live, again)]
    assert means[0] == pytest.approx(means[1])  # the seeds' order in a live sum is that of their ends
    for name in live:
        assert again[name] == live[name], name
