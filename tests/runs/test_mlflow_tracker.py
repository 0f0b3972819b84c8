"""What MLflow holds of a run, over its SQLite: the state it is in, how long it took, where its data lie."""

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
    """Starts a driver's tracker of the run "key"; what goes wrong fails."""
    storage = open_storage(str(tmp_path))

    def started(tags=(), **options):
        tracker = Tracker(storage, pytest.fail)
        tracker.start("key", "name", {}, dict(tags), **options)
        return tracker

    started.client = client(storage)
    return started


@pytest.mark.parametrize("end", ["KILLED", "FAILED", "FINISHED"])
def test_a_run_that_goes_on_is_running_until_it_ends_again(start, end):
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


def test_a_run_takes_the_time_that_it_took_whenever_it_is_written(start):
    tracker = start(began=1000.25)
    tracker.finish("FINISHED", ended=1003.5)
    info = start.client.get_run(tracker.run_id).info
    assert (info.start_time, info.end_time) == (1_000_250, 1_003_500)


def test_every_run_says_who_started_it_and_how(start):
    tags = start.client.get_run(start().run_id).data.tags
    assert provenance_tags().items() <= tags.items()
    assert {COMMAND, "mlflow.user", "mlflow.source.name"} <= set(tags)


@pytest.mark.parametrize(
    ("place", "kind"), [("/data/runs/distilled/ab", "local"), ("s3://bucket/runs/distilled/ab", "s3")]
)
def test_a_data_set_names_the_kind_of_place_that_it_lies_in(start, place, kind):
    tracker = start()
    tracker.log_dataset("distilled", "ab", place, 20)
    (given,) = start.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert given.dataset.source_type == kind
    assert json.loads(given.dataset.source) == {"uri": place}


def test_a_server_that_can_not_be_asked_is_the_persons_to_mend(tmp_path, monkeypatch):
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


def test_a_database_whose_making_was_stopped_is_made_anew(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(mlflow_db.os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            client(storage)
    assert [path.name for path in tmp_path.iterdir()] == ["format.json"]
    assert client(storage).search_experiments()


def test_who_makes_a_database_at_the_same_time_leaves_one_that_all_can_ask(tmp_path):
    storage = open_storage(str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(lambda _: client(storage).search_experiments(), range(4)))
    assert all(asked)
    assert {path.name for path in tmp_path.iterdir()} == {"format.json", "mlflow.db"}


def test_a_fault_of_ours_is_no_fault_of_the_servers(tmp_path):
    with pytest.raises(ZeroDivisionError), mlflow_errors_as_input(open_storage(str(tmp_path))):
        _ = 1 / 0
