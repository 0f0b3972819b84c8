"""The settings of the stage: its steps, its labels, its inputs."""

from dataclasses import replace

import pytest
from tiny import tiny_words

from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.sections import Finetune
from ims3_ray.errors import InputError
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.finetune.stage import num_steps, optimisation, task_arguments
from ims3_ray.storage.artifacts import open_directory

ONE_STEP = ("im.target=one_step", "finetune.micro_batches=1")


@pytest.fixture
def context_of(tiny_model, tiny_images, tmp_path):
    def context_of(*words):
        overrides = [*tiny_words(tiny_model, tiny_images, tmp_path / "runs"), *words]
        config = load_config("digits-paper", parse_overrides(overrides))
        return prepare(config, find_machine(config.workers))

    return context_of


def test_steps_limit_the_epochs():
    """The published run of 8 epochs is taken at step 8,000."""
    assert num_steps(Finetune(), 12_450) == 12_448
    assert num_steps(Finetune(steps=8000), 12_450) == 8000
    assert num_steps(Finetune(steps=8000), 4_000) == 4_000
    numbers = optimisation(Finetune(steps=8000, ema_warmup=False), 8000)
    assert (numbers.steps, numbers.ema_warmup) == (8000, False)


def test_labels_are_those_of_the_map_or_the_position(context_of):
    latents = open_directory("/nowhere")
    for name, expected in (("map", [2, 1, 0]), ("position", [0, 1, 2])):
        context = replace(context_of(f"finetune.labels={name}"), model_labels=[2, 1, 0])
        assert task_arguments(context, latents, None)["source"].model_labels == expected
        assert context.model_labels == [2, 1, 0]


def test_the_published_target_needs_no_inversions(context_of):
    def stages(*words):
        return [step.stage.name for step in plan(context_of(*words))]

    assert "invert" in stages()
    assert set(stages()) - set(stages(*ONE_STEP)) == {"invert"}
    assert "invert" in stages(*ONE_STEP, "sample.start=inversion")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["im.target=one_step"],
            r"im\.target: one_step compares a whole batch; set finetune\.micro_batches=1 and a number",
        ),
        (["im.minimax=class"], r"im\.minimax: class .*micro_batches=1"),
        ([*ONE_STEP, "im.metric=l2"], r"im\.metric: l2 needs im\.target=trajectory"),
        (["finetune.steps=0"], r"finetune\.steps"),
    ],
)
def test_settings_that_do_not_fit_the_published_criteria_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        load_config("digits-paper", parse_overrides(words))
