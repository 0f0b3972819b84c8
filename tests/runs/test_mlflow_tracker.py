"""State, times, tags and dataset of a run in MLflow's SQLite database."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ims3_ray.errors import InputError
from ims3_ray.runs import mlflow_db
from ims3_ray.runs.mlflow_tracker import Tracker, client, mlflow_errors_as_input
from ims3_ray.runs.tags import COMMAND, provenance_tags
from ims3_ray.storage.artifacts import open_storage


@pytest.fixture
def start(tmp_path):
    """Start a driver's tracker of the run "key"; an error line fails the test."""
    storage = open_storage(str(tmp_path))

    def started(tags=(), **options):
        tracker = Tracker(storage, pytest.fail)
        tracker.start("key", "name", {}, dict(tags), **options)
        return tracker

    started.client = client(storage)
    return started


@pytest.mark.parametrize("end", ["KILLED", "FAILED", "FINISHED"])
def test_a_resumed_run_is_running_until_it_ends_again(start, end):
    first = start({"version.ray": "1"})
    first.finish(end)
    ended = start.client.get_run(first.run_id).info.end_time
    again = start({"version.ray": "2"})
    assert start.client.get_run(first.run_id).info.status == end
    again.resume()
    run = start.client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["version.ray"]) == ("RUNNING", "2")
    time.sleep(0.01)
    again.finish("FINISHED")
    info = start.client.get_run(first.run_id).info
    assert info.status == "FINISHED"
    assert info.end_time > ended


def test_start_and_end_may_be_in_the_past(start):
    tracker = start(began=1000.25)
    tracker.finish("FINISHED", ended=1003.5)
    info = start.client.get_run(tracker.run_id).info
    assert (info.start_time, info.end_time) == (1_000_250, 1_003_500)


def test_every_run_has_provenance_tags(start):
    tags = start.client.get_run(start().run_id).data.tags
    assert provenance_tags().items() <= tags.items()
    assert {COMMAND, "mlflow.user", "mlflow.source.name"} <= set(tags)


@pytest.mark.parametrize(
    ("place", "kind"), [("/data/runs/distilled/ab", "local"), ("s3://bucket/runs/distilled/ab", "s3")]
)
def test_a_dataset_has_its_source_and_type(start, place, kind):
    tracker = start()
    tracker.log_dataset("distilled", "ab", place, 20)
    (given,) = start.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert given.dataset.source_type == kind
    assert json.loads(given.dataset.source) == {"uri": place}


def test_an_unreachable_server_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    storage = open_storage(str(tmp_path))
    with (
        pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI: http.*:9 .*start the server"),
        mlflow_errors_as_input(storage),
    ):
        client(storage).search_experiments()
    with pytest.raises(InputError, match="No module named 'psycopg'"), mlflow_errors_as_input(storage):
        raise ModuleNotFoundError("No module named 'psycopg'")


def test_an_interrupted_creation_of_the_database_is_repeated(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(mlflow_db.os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            client(storage)
    assert [path.name for path in tmp_path.iterdir()] == ["format.json"]
    assert client(storage).search_experiments()


def test_concurrent_drivers_create_one_database(tmp_path):
    storage = open_storage(str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(lambda _: client(storage).search_experiments(), range(4)))
    assert all(asked)
    assert {path.name for path in tmp_path.iterdir()} == {"format.json", "mlflow.db"}


def test_our_own_errors_are_not_converted(tmp_path):
    with pytest.raises(ZeroDivisionError), mlflow_errors_as_input(open_storage(str(tmp_path))):
        _ = 1 / 0
