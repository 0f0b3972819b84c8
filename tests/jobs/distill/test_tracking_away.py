"""An unreachable MLflow server: the run continues, and its records are written later."""

import pytest
from tracking_server import Server

from ims3_ray.runs import mlflow_tracker
from ims3_ray.storage.artifacts import open_storage


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start tracking a run with a key; `start.lines` has the printed lines."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def start(key, parameters=()):
        run = mlflow_tracker.Tracker(open_storage(str(tmp_path / "runs")), start.lines.append)
        run.start(key, key, dict(parameters), {"kind": "distillation"})
        return run

    start.lines = []
    return start


def curve(run):
    client = mlflow_tracker.client(run._storage)
    return [(point.step, point.value) for point in client.get_metric_history(run.run_id, "loss")]


@pytest.mark.chaos
def test_records_for_an_unreachable_server_are_written_once_it_is_back(start, tmp_path, monkeypatch):
    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(mlflow_tracker, "RETRY_S", 1.0)
    monkeypatch.setattr(mlflow_tracker, "FINAL_RETRY_S", 1.0)
    early = start("early", {"ipc": 1})  # before the server is there at all
    early.log(1, {"loss": 1.0})
    assert early.run_id is None
    assert len(start.lines) == 1
    assert "retried" in start.lines[0]
    server.start()
    run = start("key", {"ipc": 5})
    run.log(1, {"loss": 0.5})
    server.stop()
    for step in (2, 3):
        run.log(step, {"loss": 0.5 / step})
    run.log_file("note.txt", b"kept")
    assert run.finish("FINISHED", patient=False) is False
    server.start()
    try:
        assert run.finish("FINISHED")
        assert early.finish("FINISHED")
        client = mlflow_tracker.client(run._storage)
        for tracker, steps in ((run, [1, 2, 3]), (early, [1])):
            assert [step for step, _ in curve(tracker)] == steps
            assert client.get_run(tracker.run_id).info.status == "FINISHED"
        assert [a.path for a in client.list_artifacts(run.run_id)] == ["note.txt"]
        assert len(client.search_runs([client.get_experiment_by_name("ims3_ray").experiment_id])) == 2
    finally:
        server.stop()


def test_a_run_gives_up_on_a_server_that_stays_unreachable(start, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(mlflow_tracker, "FINAL_RETRY_S", 0.1)
    monkeypatch.setattr(mlflow_tracker, "FINAL_WAIT_S", 0.5)
    run = start("key")
    run.log(1, {"loss": 0.5})
    assert run.finish("FINISHED") is False
    _, waiting, lost = start.lines
    assert "waiting" in waiting
    assert "3 records" in lost


def test_a_record_that_mlflow_rejects_is_reported_and_the_rest_is_written(start):
    run = start("key", {"ipc": 1})
    run.log(1, {"a name that MLflow does not take: $!*": 1.0})
    run.log(2, {"loss": 0.25})
    assert run.finish("FINISHED")
    assert curve(run) == [(2, 0.25)]
    assert ["without" in line for line in start.lines] == [True]


def test_a_resumed_run_leaves_one_curve(start):
    for steps in ((1, 2, 3), (2, 3, 4, 4)):
        run = start("key")
        for step in steps:
            run.log(step, {"loss": 1 / step})
    assert curve(run) == [(step, 1 / step) for step in (1, 2, 3, 4)]
