"""The timesteps of the sampler, and the intervals of guidance."""

import pytest
import torch

from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.method.schedule import space_timesteps, timesteps_from
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.sample.stage import check_intervals, in_interval, sampling_timesteps


def config(*words):
    return load_config("digits-paper", parse_overrides(["sample.steps=10", *words]))


def test_dpm_steps_evenly_in_log_snr_for_any_spacing():
    for spacing in ("linspace", "leading"):
        dpm = sampling_timesteps(config("sample.sampler=dpm", f"sample.spacing={spacing}"))
        assert torch.equal(dpm, space_timesteps(10, "log_snr"))
        assert torch.equal(
            sampling_timesteps(config(f"sample.spacing={spacing}")), space_timesteps(10, spacing)
        )


def test_inversions_are_denoised_from_their_grid_point_nearest_to_the_start_level():
    words = "sample.start=inversion", "sample.start_level=360", "invert.steps=9"
    assert sampling_timesteps(config(*words)).tolist() == [0, 111, 222, 333]
    assert timesteps_from(space_timesteps(11), 400).tolist() == [0, 100, 200, 300, 400]


def test_settings_that_change_the_timesteps_change_the_fingerprint(tiny_overrides):
    def fingerprint(*words):
        tiny = load_config("digits", parse_overrides([*tiny_overrides, *words]))
        return plan(prepare(tiny, find_machine(tiny.workers)), "sample")[-1].fingerprint

    ancestral, ddim, dpm = (fingerprint(f"sample.sampler={name}") for name in ("ancestral", "ddim", "dpm"))
    assert len({ancestral, ddim, dpm}) == 3
    assert fingerprint("sample.spacing=leading") != ancestral
    assert fingerprint("sample.sampler=dpm", "sample.spacing=leading") == dpm


def test_an_interval_includes_both_ends():
    timesteps = torch.tensor([199, 200, 600, 601])
    assert in_interval(timesteps, (200, 600)).tolist() == [False, True, True, False]
    assert in_interval(timesteps, None).all()


@pytest.mark.parametrize(
    "words",
    [
        ("sample.guidance_interval=[1, 9]",),
        ("sample.sampler=dpm", "sample.guidance_interval=[990, 998]"),
        ("sample.start=inversion", "sample.guidance_interval=[500, 999]"),
    ],
)
def test_a_guidance_interval_without_a_timestep_is_refused(words):
    with pytest.raises(InputError, match=r"sample\.guidance_interval: .*widen it"):
        check_intervals(config(*words))


def test_the_anchor_interval_is_checked_only_if_there_are_anchors():
    words = "sample.anchor_interval=[1, 9]", "sample.guidance_interval=[300, 400]"
    check_intervals(config(*words))
    with pytest.raises(InputError, match="anchor_interval"):
        check_intervals(config(*words, "sample.guidance=modes"))
