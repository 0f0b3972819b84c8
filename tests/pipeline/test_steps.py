"""A step that another driver completes."""

from types import SimpleNamespace

from ims3_ray.pipeline.steps import Step, run_step
from ims3_ray.stages.base import Stage
from ims3_ray.storage.artifacts import complete, open_directory

CONTEXT = SimpleNamespace(machine=SimpleNamespace(device="cpu"))


def step_of(directory, run):
    named = {"name": "draw", "output": "drawings", "version": 1}
    stage = Stage(**named, run=run, fingerprint_inputs=lambda _: None, cost=lambda *_: None)
    return Step(stage, directory, {}, None, {})


def complete_elsewhere(directory):
    complete(directory, {"rows": 3, "unit": "images", "seconds": 12.5, "rate": 0.24})


def test_step_completed_by_another_driver_does_not_run(tmp_path):
    directory = open_directory(str(tmp_path))
    planned = step_of(directory, None)  # cannot run
    complete_elsewhere(directory)
    step = run_step(CONTEXT, planned)
    assert (step.summary["seconds"], step.ran) == (12.5, False)


def test_refreshed_step_has_the_current_manifest(tmp_path):
    directory = open_directory(str(tmp_path))
    planned = step_of(directory, None)
    assert planned.refreshed().manifest is None
    complete_elsewhere(directory)
    assert planned.refreshed().summary["seconds"] == 12.5
