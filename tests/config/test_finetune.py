"""finetune.batch_size=auto: a batch for the devices at hand, and what hangs on it."""

import pytest

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.sections import PAPER_BATCH, Finetune
from ims3_ray.errors import InputError


def test_auto_on_as_many_devices_as_the_paper_has_parts_is_the_paper():
    assert Finetune(batch_size="auto").scaled_to(2) == Finetune(batch_size=PAPER_BATCH)
    assert Finetune(batch_size="auto").scaled_to(1) == Finetune(batch_size=PAPER_BATCH)


def test_a_batch_four_times_as_large_takes_a_quarter_of_the_steps_and_twice_the_learning_rate():
    given = Finetune(batch_size="auto", lr=1e-3, ema_decay=0.99, steps=100)
    scaled = given.scaled_to(8)
    assert (scaled.latents, scaled.micro_batches, scaled.steps) == (32, 8, 25)
    assert scaled.lr == pytest.approx(2e-3)
    assert scaled.ema_decay == pytest.approx(0.99**4)


def test_a_number_is_left_as_it_is():
    assert Finetune(batch_size=8).scaled_to(64) == Finetune(batch_size=8)


def test_auto_is_refused_where_a_batch_must_be_whole():
    words = ["im.target=one_step", "finetune.micro_batches=1", "finetune.batch_size=auto"]
    with pytest.raises(InputError, match="one_step compares a whole batch"):
        load_config("digits-paper", parse_overrides(words))
