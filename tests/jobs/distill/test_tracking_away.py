"""An MLflow server that goes away for a while: a run goes on, and what it said meanwhile is written later."""

import pytest
from tracking_server import Server

from ims3_ray.runs import tracking
from ims3_ray.storage.artifacts import open_storage

pytestmark = pytest.mark.slow


def test_what_a_run_says_while_the_server_is_away_is_written_once_it_is_back(tmp_path, monkeypatch):
    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "RETRY_S", 1.0)
    monkeypatch.setattr(tracking, "LAST_WAIT_S", 1.0)
    storage, said = open_storage(str(tmp_path / "runs")), []
    early = tracking.Tracker(storage, said.append)
    early.start("early", "early", {"ipc": 1}, {"kind": "distillation"})  # before the server is there at all
    early.log(1, {"loss": 1.0})
    assert early.run_id is None
    assert len(said) == 1
    assert "is tried again" in said[0]
    server.start()
    run = tracking.Tracker(storage, said.append)
    run.start("key", "name", {"ipc": 5}, {"kind": "distillation"})
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
        client = tracking.client(storage)
        for tracker, steps in ((run, [1, 2, 3]), (early, [1])):
            assert [m.step for m in client.get_metric_history(tracker.run_id, "loss")] == steps
            assert client.get_run(tracker.run_id).info.status == "FINISHED"
        assert [a.path for a in client.list_artifacts(run.run_id)] == ["note.txt"]
        assert len(client.search_runs([client.get_experiment_by_name("ims3_ray").experiment_id])) == 2
    finally:
        server.stop()


def test_a_server_that_never_comes_is_given_up_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "LAST_WAIT_S", 0.1)
    said = []
    run = tracking.Tracker(open_storage(str(tmp_path / "runs")), said.append)
    run.start("key", "name", {}, {})
    run.log(1, {"loss": 0.5})
    assert run.finish("FINISHED") is False
    assert len(said) == 2
    assert "3 records of run that is not there could not be written" in said[1]


def test_what_mlflow_refuses_is_said_and_the_rest_is_written(tmp_path):
    said = []
    run = tracking.Tracker(open_storage(str(tmp_path / "runs")), said.append)
    run.start("key", "name", {"ipc": 1}, {})
    run.log(1, {"a name that MLflow does not take: $!*": 1.0})
    run.log(2, {"loss": 0.25})
    assert run.finish("FINISHED")
    assert curve(run, "loss") == [(2, 0.25)]
    assert len(said) == 1
    assert "without tracking what fails" in said[0]


def curve(run, metric):
    return [
        (point.step, point.value)
        for point in tracking.client(run._storage).get_metric_history(run.run_id, metric)
    ]


def test_a_run_that_goes_on_leaves_one_curve(tmp_path):
    storage = open_storage(str(tmp_path / "runs"))
    first, second = (tracking.Tracker(storage, print) for _ in range(2))
    first.start("key", "name", {}, {})
    for step in (1, 2, 3):
        first.log(step, {"loss": 1 / step})
    second.start("key", "name", {}, {})
    for step in (2, 3, 4, 4):
        second.log(step, {"loss": 1 / step})
    assert curve(second, "loss") == [(step, 1 / step) for step in (1, 2, 3, 4)]
