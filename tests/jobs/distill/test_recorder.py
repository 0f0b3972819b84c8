"""State of a run in its record and MLflow while it runs, after a stop and when resumed."""

import pytest

from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.jobs.distill.recorder import Recorder
from ims3_ray.jobs.distill.status import read_status
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan
from ims3_ray.progress import RUN
from ims3_ray.runs.mlflow_tracker import client


@pytest.fixture
def config(tiny_overrides):
    return load_config("digits", parse_overrides(tiny_overrides))


@pytest.fixture
def begin(config):
    """Start recording the run; returns the recorder and the printed lines."""
    context = prepare(config, find_machine(config.workers, wait=False))

    def begun():
        lines = []
        return Recorder(context, plan(context), lines.append), lines

    begun.storage = context.storage
    return begun


@pytest.mark.slow
def test_a_stopped_run_is_running_again_when_resumed(begin, config):
    def states(recorder):
        return client(begin.storage).get_run(recorder.tracker.run_id).info.status, read_status(config)[
            "state"
        ]

    def stop(recorder):
        with recorder.recording():
            assert states(recorder) == ("RUNNING", "running")
            assert RUN.get() == f"digits-{recorder.key}"
            raise KeyboardInterrupt

    recorder, _ = begin()
    with pytest.raises(KeyboardInterrupt):
        stop(recorder)
    assert states(recorder) == ("KILLED", "stopped")
    again, lines = begin()
    assert states(again) == ("RUNNING", "running")
    assert again.tracker.run_id == recorder.tracker.run_id
    assert lines == []
