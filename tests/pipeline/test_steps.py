"""A step of a run where another driver is at work on it, too."""

from types import SimpleNamespace

from ims3_ray.pipeline.steps import Step, run_step
from ims3_ray.stages.base import Stage
from ims3_ray.storage.artifacts import complete, open_directory

CONTEXT = SimpleNamespace(machine=SimpleNamespace(device="cpu"))


def step_of(directory, run):
    stage = Stage(
        name="draw",
        output="drawings",
        version=1,
        run=run,
        fingerprint_inputs=lambda _: None,
        cost=lambda *_: None,
    )
    return Step(stage, directory, {}, None, {})


def as_another_driver(directory):
    complete(directory, {"rows": 3, "unit": "images", "seconds": 12.5, "rate": 0.24})


def test_a_step_that_another_driver_made_since_it_was_planned_is_taken_and_not_made_again(tmp_path):
    directory = open_directory(str(tmp_path))
    planned = step_of(directory, None)  # which can't be run
    as_another_driver(directory)
    step = run_step(CONTEXT, planned)
    assert (step.summary["seconds"], step.ran) == (12.5, False)


def test_a_step_looks_again_and_finds_what_was_made_since_it_was_planned(tmp_path):
    directory = open_directory(str(tmp_path))
    planned = step_of(directory, None)
    assert planned.again().manifest is None
    as_another_driver(directory)
    assert planned.again().summary["seconds"] == 12.5
