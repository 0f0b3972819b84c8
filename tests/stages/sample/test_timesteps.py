"""The timesteps of the sampler, and the intervals of guidance."""

import pytest
import torch
from planned import config_of, context_of

from ims3_ray.errors import InputError
from ims3_ray.method.schedule import space_timesteps, timesteps_from
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.sample.stage import check_interval, in_interval, sampling_timesteps

DPM = "sample.sampler=dpm"
INVERSION = "sample.start=inversion"


def config(*words):
    return config_of(["sample.steps=10"], *words, recipe="digits-paper")


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_dpm_steps_evenly_in_log_snr_for_any_spacing(spacing):
    word = f"sample.spacing={spacing}"
    assert torch.equal(sampling_timesteps(config(DPM, word)), space_timesteps(10, "log_snr"))
    assert torch.equal(sampling_timesteps(config(word)), space_timesteps(10, spacing))


def test_inversions_are_denoised_from_their_grid_point_nearest_to_the_start_level():
    timesteps = sampling_timesteps(config(INVERSION, "sample.start_level=360", "invert.steps=9"))
    assert timesteps.tolist() == [0, 111, 222, 333]
    assert timesteps_from(space_timesteps(11), 400).tolist() == [0, 100, 200, 300, 400]


def test_settings_that_change_the_timesteps_change_the_fingerprint(tiny_overrides):
    def fingerprint(*words):
        return plan(context_of(tiny_overrides, *words), "sample")[-1].fingerprint

    dpm, leading = fingerprint(DPM), "sample.spacing=leading"
    others = fingerprint("sample.sampler=ancestral"), fingerprint("sample.sampler=ddim"), fingerprint(leading)
    assert len({dpm, *others}) == 4
    assert fingerprint(DPM, leading) == dpm


def test_an_interval_includes_both_ends():
    timesteps = torch.tensor([199, 200, 600, 601])
    assert in_interval(timesteps, (200, 600)).tolist() == [False, True, True, False]
    assert in_interval(timesteps, None).all()


@pytest.mark.parametrize(
    ("more", "interval"), [([], "[1, 9]"), ([DPM], "[990, 998]"), ([INVERSION], "[500, 999]")]
)
def test_a_guidance_interval_without_a_timestep_is_refused(more, interval):
    with pytest.raises(InputError, match=r"sample\.guidance_interval: .*widen"):
        check_interval(config(*more, f"sample.guidance_interval={interval}"))
