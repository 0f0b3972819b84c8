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

    def started(tags=(), params=(), **options):
        tracker = Tracker(storage, pytest.fail)
        tracker.start("key", "name", dict(params), dict(tags), **options)
        return tracker

    started.client = client(storage)
    return started


@pytest.mark.parametrize("end", ["KILLED", "FAILED", "FINISHED"])
def test_a_resumed_run_is_running_until_it_ends_again(start, end):
    first = start({"version.ray": "1"})

    def seen():
        run = start.client.get_run(first.run_id)
        return run.info.status, run.data.tags["version.ray"], run.info.end_time

    first.finish(end)
    ended = seen()[2]
    again = start({"version.ray": "2"})
    assert seen()[0] == end
    again.resume()
    assert seen()[:2] == ("RUNNING", "2")
    time.sleep(0.01)
    again.finish("FINISHED")
    assert seen()[0] == "FINISHED"
    assert seen()[2] > ended


def test_parameters_that_did_not_reach_the_server_are_written_later(start):
    run_id = start().run_id  # as if the server had gone after it created the run
    assert start(params={"ipc": 10}).run_id == run_id
    assert start.client.get_run(run_id).data.params == {"ipc": "10"}


def test_a_run_has_provenance_tags_and_may_be_in_the_past(start):
    tracker = start(began=1000.25)
    tracker.finish("FINISHED", ended=1003.5)
    run = start.client.get_run(tracker.run_id)
    assert (run.info.start_time, run.info.end_time) == (1_000_250, 1_003_500)
    assert provenance_tags().items() <= run.data.tags.items()
    assert {COMMAND, "mlflow.user", "mlflow.source.name"} <= set(run.data.tags)


@pytest.mark.parametrize(
    ("place", "kind"), [("/data/runs/distilled/ab", "local"), ("s3://bucket/runs/distilled/ab", "s3")]
)
def test_a_dataset_has_its_source_and_type(start, place, kind):
    tracker = start()
    tracker.log_dataset("distilled", "ab", place, 20)
    (given,) = start.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert given.dataset.source_type == kind
    assert json.loads(given.dataset.source) == {"uri": place}


@pytest.mark.parametrize(
    ("kind", "expected"), [(ModuleNotFoundError, InputError), (ZeroDivisionError, ZeroDivisionError)]
)
def test_a_missing_module_is_an_input_error_and_our_own_errors_are_not(tmp_path, kind, expected):
    with pytest.raises(expected, match="psycopg"), mlflow_errors_as_input(open_storage(str(tmp_path))):
        raise kind("No module named 'psycopg'")


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
