"""The MLflow runs of a sweep and its trials, in SQLite; the test calls back in the place of Tune."""

from types import SimpleNamespace

import mlflow
import pytest

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.settings import Workers
from ims3_ray.jobs.sweep.mlflow_callback import MlflowCallback
from ims3_ray.jobs.sweep.plan import Sweep, trial_key
from ims3_ray.jobs.sweep.run import plan_trials
from ims3_ray.jobs.sweep.search_space import read_space
from ims3_ray.jobs.sweep.trial import Trial, read_trials
from ims3_ray.runs import mlflow_tracker, records, tags
from ims3_ray.runs.mlflow_db import tracking_uri
from ims3_ray.runs.query import objectives
from ims3_ray.storage.artifacts import open_storage

WORDS = ["sample.subgroups=2,3", "ipc=3,6", "select.alpha=0.2,0.8"]


class Driver:
    """The MLflow side of a sweep's driver."""

    def __init__(self, root):
        self.sweep = Sweep(recipe="digits-paper", overrides={}, space=read_space(WORDS, "digits-paper", {}))
        self.storage = open_storage(str(root))
        machine = Machine("cpu", 2, 0, 1e9, Workers())
        context = SimpleNamespace(config=self.sweep.base, storage=self.storage, machine=machine, inputs={})
        self.folder, self.said = self.storage / "sweeps" / "s", []
        self.points = self.sweep.points()
        tracker = mlflow_tracker.Tracker(self.storage, self.said.append)
        tracker.start(self.sweep.key, self.sweep.name, self.sweep.params(), {tags.KIND: tags.SWEEP})
        self.parent = tracker.run_id
        options = len(self.points), self.parent, self.said.append
        self.callback = MlflowCallback(self.sweep, context, self.folder, *options)

    def write(self, number, **changes):
        values = self.points[number]
        return Trial(number, values, key=self.sweep.trial_tag(values)).write(self.folder, **changes)

    def call(self, event, number):
        config = self.sweep.space.encode(self.points[number])
        getattr(self.callback, event)(0, [], SimpleNamespace(config=config))

    def run_of(self, number):
        client = mlflow_tracker.client(self.storage)
        tag = f"tags.`{tags.RUN}` = '{self.sweep.trial_tag(self.points[number])}'"
        (run,) = client.search_runs([mlflow_tracker.experiment_id(client, self.storage)], tag)
        return run


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)


def finish(driver, number, state=records.FINISHED):
    driver.write(number, state=state, began=1000.0, seconds=3.25, metrics={"accuracy": 0.5})
    driver.call("on_trial_complete", number)


def test_every_trial_is_found_by_its_own_values_and_the_sweep_by_none(driver, monkeypatch):
    for number in range(len(driver.points)):
        finish(driver, number)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(driver.storage))
    names = [mlflow_tracker.EXPERIMENT]
    trials = mlflow.search_runs(experiment_names=names, filter_string="tags.kind = 'trial'")
    fields = ["sample.subgroups", "ipc", "select.alpha"]
    found = trials[[f"params.{field}" for field in fields]].astype(float).values.tolist()
    assert sorted(found) == sorted([float(values[field]) for field in fields] for values in driver.points)
    params = mlflow_tracker.client(driver.storage).get_run(driver.parent).data.params
    assert not set(fields) & set(params)
    assert params["select.beta"] == str(driver.sweep.base.select.beta)
    assert {f"space.{field}" for field in fields} <= set(params)
    assert objectives({"params": params}) == ["accuracy"]


def test_a_trials_run_has_its_state_and_its_duration(driver):
    driver.write(0, state=records.PLANNED)
    driver.call("on_trial_start", 0)
    assert driver.run_of(0).info.status == "RUNNING"
    finish(driver, 0)
    assert driver.run_of(0).info.status == "FINISHED"
    finish(driver, 1)
    info = driver.run_of(1).info
    assert info.end_time - info.start_time == 3250


def test_a_trial_that_never_began_has_a_number_of_its_own(driver):
    driver.write(3)
    driver.call("on_trial_error", 1)
    assert [trial.number for trial in read_trials(driver.folder)] == [3, 4]


def test_running_trials_are_killed_with_the_sweep_and_run_again_when_it_resumes(driver, tmp_path):
    for number in (0, 1):
        driver.write(number, state=records.PLANNED)
        driver.call("on_trial_start", number)
    finish(driver, 0)
    driver.write(2, state=records.FAILED, error="it broke")
    driver.call("on_trial_complete", 2)
    driver.callback.stop()
    ended = [driver.run_of(number) for number in range(3)]
    assert [run.info.status for run in ended] == ["FINISHED", "KILLED", "FAILED"]
    assert [run.data.tags.get("error") for run in ended] == [None, None, "it broke"]
    again = Driver(tmp_path)
    for number in (1, 2):
        again.call("on_trial_start", number)
        run = again.run_of(number)
        assert (run.info.status, run.data.tags.get("error")) == ("RUNNING", None)


def test_printed_lines_tell_complete_trials_from_new_ones(driver, tmp_path):
    finish(driver, 0)
    again = Driver(tmp_path)
    again.call("on_trial_complete", 0)
    finish(again, 1)
    assert [line.rsplit("(", 1)[1] for line in again.said] == ["found complete)", "3 s)"]


def test_future_trials_are_planned(driver):
    steps = {trial_key(values): [] for values in driver.points}
    plan_trials(driver.sweep, driver.points, steps, driver.folder)
    folder = driver.folder / "trials"
    assert {folder.read_json(name)["state"] for name in folder.files()} == {records.PLANNED}
