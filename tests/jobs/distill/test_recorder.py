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


@pytest.mark.slow
def test_a_stopped_run_is_running_again_when_resumed(tiny_overrides):
    config = load_config("digits", parse_overrides(tiny_overrides))
    context = prepare(config, find_machine(config.workers, wait=False))
    recorder = Recorder(context, plan(context), print)

    def states():
        run = client(context.storage).get_run(recorder.tracker.run_id)
        return run.info.status, read_status(config)["state"]

    def stop():
        with recorder.recording():
            assert states() == ("RUNNING", "running")
            assert RUN.get() == f"digits-{recorder.key}"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert states() == ("KILLED", "stopped")
    again = Recorder(context, plan(context), pytest.fail)
    assert states() == ("RUNNING", "running")
    assert again.tracker.run_id == recorder.tracker.run_id
