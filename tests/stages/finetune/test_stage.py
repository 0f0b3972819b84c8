"""The settings of the stage: its steps, its labels, its inputs."""

from dataclasses import replace

import pytest
from planned import config_of, context_of

from ims3_ray.config.sections import Finetune
from ims3_ray.errors import InputError
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.finetune.stage import num_steps, optimisation, task_arguments
from ims3_ray.storage.artifacts import open_directory

ONE_STEP = ("im.target=one_step", "finetune.micro_batches=1")


def test_steps_limit_the_epochs():
    """The published run of 8 epochs is taken at step 8,000."""
    assert num_steps(Finetune(), 12_450) == 12_448
    assert num_steps(Finetune(steps=8000), 12_450) == 8000
    assert num_steps(Finetune(steps=8000), 4_000) == 4_000
    numbers = optimisation(Finetune(steps=8000, ema_warmup=False), 8000)
    assert (numbers.steps, numbers.ema_warmup) == (8000, False)


@pytest.mark.parametrize(("labels", "expected"), [("map", [2, 1, 0]), ("position", [0, 1, 2])])
def test_labels_are_those_of_the_map_or_the_position(tiny_overrides, labels, expected):
    context = context_of(tiny_overrides, f"finetune.labels={labels}", recipe="digits-paper")
    context = replace(context, model_labels=[2, 1, 0])
    assert task_arguments(context, open_directory("/nowhere"), None)["source"].model_labels == expected
    assert context.model_labels == [2, 1, 0]


def test_the_published_target_needs_no_inversions(tiny_overrides):
    def stages(*words):
        context = context_of(tiny_overrides, *words, recipe="digits-paper")
        return {step.stage.name for step in plan(context)}

    assert stages() - stages(*ONE_STEP) == {"invert"}
    assert "invert" in stages(*ONE_STEP, "sample.start=inversion")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["im.target=one_step"], r"im\.target: one_step .*micro_batches=1"),
        (["im.minimax=class"], r"im\.minimax: class .*micro_batches=1"),
        (["finetune.steps=0"], r"finetune\.steps"),
    ],
)
def test_settings_that_do_not_fit_the_published_criteria_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        config_of(words, recipe="digits-paper")
