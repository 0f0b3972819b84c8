import pytest
import torch

from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.method.schedule import space_timesteps
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.sample.timesteps import check_intervals, inside, timesteps_of


def config(*words):
    return load_config("digits-paper", parse_overrides(["sample.steps=10", *words]))


def test_dpm_asks_at_even_steps_of_log_snr_whatever_the_others_spacing():
    for spacing in ("linspace", "leading"):
        at = timesteps_of(config("sample.sampler=dpm", f"sample.spacing={spacing}"))
        assert torch.equal(at, space_timesteps(10, "log_snr"))
        assert torch.equal(timesteps_of(config(f"sample.spacing={spacing}")), space_timesteps(10, spacing))


def test_starts_are_denoised_from_the_nearest_point_of_their_inversions():
    words = "sample.start=inversion", "sample.start_level=360", "invert.steps=9"
    assert timesteps_of(config(*words)).tolist() == [0, 111, 222, 333]


def test_what_a_samplers_timesteps_rest_on_tells_pools_apart(tiny_overrides):
    def fingerprint(*words):
        given = load_config("digits", parse_overrides([*tiny_overrides, *words]))
        return plan(prepare(given, find_machine(given.workers)), "sample")[-1].fingerprint

    ancestral, ddim, dpm = (fingerprint(f"sample.sampler={name}") for name in ("ancestral", "ddim", "dpm"))
    assert len({ancestral, ddim, dpm}) == 3
    assert fingerprint("sample.spacing=leading") != ancestral
    assert fingerprint("sample.sampler=dpm", "sample.spacing=leading") == dpm


def test_an_interval_includes_both_its_ends():
    at = torch.tensor([199, 200, 600, 601])
    assert inside(at, (200, 600)).tolist() == [False, True, True, False]
    assert inside(at, None).all()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "guidance_interval: [1, 9] holds none of the timesteps of 10 ancestral steps (999, 888"),
        (("sample.sampler=dpm", "sample.guidance_interval=[990, 998]"), "none of the timesteps of 10 dpm"),
        (
            ("sample.start=inversion", "sample.guidance_interval=[500, 999]"),
            "holds none of the timesteps of 10 ancestral steps (400, 333",
        ),
    ],
)
def test_an_interval_without_a_timestep_is_refused(words, line):
    with pytest.raises(InputError) as error:
        check_intervals(config("sample.guidance_interval=[1, 9]", *words))
    assert line in str(error.value)
    assert str(error.value).endswith("widen it")


def test_an_interval_for_anchors_counts_where_there_are_some():
    words = "sample.anchor_interval=[1, 9]", "sample.guidance_interval=[300, 400]"
    check_intervals(config(*words))
    with pytest.raises(InputError, match="anchor_interval"):
        check_intervals(config(*words, "sample.guidance=modes"))
