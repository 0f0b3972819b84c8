"""Pools that are larger than the set that is chosen from them, and candidates that start from inversions."""

import numpy as np
import pytest

from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.method import schedule
from ims3_ray.pipeline import prepare as preparation
from ims3_ray.pipeline.steps import plan, run_step
from ims3_ray.stages.sample.initial_latents import Starts
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.rows import read_rows

EVERYWHERE = "sample.anchor_interval=[0, 999]"


def made(words, *more, upto="select"):
    """The steps of a run up to a stage, by noun, made where they are missing."""
    config = load_config("digits", parse_overrides([*words, *more]))
    context = preparation.prepare(config, find_machine(config.workers))
    steps = plan(context, upto)
    return {step.stage.output: step if step.manifest else run_step(context, step) for step in steps}


def candidates(steps):
    rows = read_rows(steps["candidates"].directory, schemas.CANDIDATES)
    order = np.lexsort((rows["index"], rows["subgroup"], rows["label"]))
    return {name: column[order] for name, column in rows.items()}


@pytest.fixture
def words(finished_run):
    return finished_run[0]


@pytest.mark.slow
def test_a_selection_from_a_larger_pool_is_that_of_its_own_pool(words):
    """One pool serves every IPC and number of subgroups: what lies beyond them has no say."""
    small = ("ipc=4", "sample.subgroups=2")
    large = ("ipc=4", "sample.pool_ipc=6", "sample.subgroups=3", "select.subgroups=2")
    own, shared = made(words, *small, upto="export"), made(words, *large, upto="export")
    assert shared["candidates"].fingerprint == made(words, upto="sample")["candidates"].fingerprint
    first, second = (steps["selection"].directory.read_json("selection.json") for steps in (own, shared))
    assert first["selection"] == second["selection"]
    # batches of other rows: round-off
    assert first["objective"] == pytest.approx(second["objective"], abs=1e-5)
    assert len(own["distilled"].manifest["images"]) == len(shared["distilled"].manifest["images"]) == 12


def test_one_subgroup_is_no_selection(words):
    selection = made(words, "select.subgroups=1")["selection"].directory.read_json("selection.json")
    assert set(selection["selection"].values()) == {0}


@pytest.mark.slow
def test_a_start_without_noise_at_the_first_level_is_close_to_its_image_and_pure_noise_is_none(words):
    """Sampled from just above clean, a candidate's latents are those of its start, but not from noise."""
    start = ("sample.start=inversion", "sample.start_level=1")
    near, far = (
        candidates(made(words, *start, f"sample.start_noise={share}", upto="sample")) for share in (0, 1)
    )
    noise = candidates(made(words, upto="sample"))
    assert not np.array_equal(near["feature"], far["feature"])
    assert not np.array_equal(near["feature"], noise["feature"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        ("sample.start=inversion", "sample.start_level=600"),
        ("sample.guidance=transport",),
        ("sample.sampler=dpm", "sample.start=inversion", "sample.guidance=modes", EVERYWHERE),
    ],
)
def test_starts_guidance_and_dpm_are_the_same_for_any_number_of_actors(words, given):
    given += ("finetune.epochs=0",)
    steps = made(words, *given, "workers.actors=1", upto="sample")
    one = candidates(steps)
    steps["candidates"].directory.delete()
    many = candidates(made(words, *given, "workers.actors=3", upto="sample"))
    for name in one:
        assert np.array_equal(one[name], many[name]), name


def test_a_pool_from_noise_reads_no_inversions(words):
    everything = {"adapter", "inversions", "features"}
    for start, nouns in (("noise", {"adapter"}), ("inversion", everything)):
        config = load_config("digits", parse_overrides([*words, f"sample.start={start}"]))
        *_, sample = plan(preparation.prepare(config, find_machine(config.workers)), "sample")
        assert set(sample.parents) == nouns


def test_starts_are_dealt_out_in_order_and_again_from_the_first():
    starts = Starts(np.zeros((5, 1, 1, 1), np.float16), 0.5, np.array([0, 2, 5]), pool_ipc=2)
    subgroup, index = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert starts.rows(np.zeros(4, int), subgroup, index).tolist() == [0, 1, 0, 1]
    assert starts.rows(np.ones(4, int), subgroup, index).tolist() == [2, 3, 4, 2]


def test_a_sampler_from_a_level_visits_the_timesteps_below_it():
    steps = schedule.timesteps_from(schedule.space_timesteps(11), 400)
    assert steps.tolist() == [0, 100, 200, 300, 400]


def test_a_pool_smaller_than_the_set_is_refused(words):
    for word, field in (("sample.pool_ipc=3", "sample.pool_ipc"), ("select.subgroups=9", "select.subgroups")):
        with pytest.raises(InputError, match=field):
            load_config("digits", parse_overrides([*words, word]))


def test_starts_are_read_as_they_were_saved(tmp_path):
    latents = np.random.default_rng(0).normal(size=(5, 4, 2, 2)).astype(np.float16)
    starts = Starts(latents, 0.75, np.array([0, 2, 5]), pool_ipc=2)
    starts.save(open_directory(str(tmp_path)))
    read = Starts.load(open_directory(str(tmp_path)))
    assert np.array_equal(read.latents, latents)
    assert np.array_equal(read.offsets, starts.offsets)
    assert (read.noise, read.pool_ipc) == (0.75, 2)
