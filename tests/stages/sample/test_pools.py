"""Pools that are larger than the distilled set, and candidates that start from inversions."""

from functools import partial

import numpy as np
import planned
import pytest

from ims3_ray.errors import InputError
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.sample.initial_latents import InitialLatents
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.rows import read_rows

steps_of = partial(planned.steps_of, upto="select")


def candidates(steps):
    rows = read_rows(steps["candidates"].directory, schemas.CANDIDATES)
    order = np.lexsort((rows["index"], rows["subgroup"], rows["label"]))
    return {name: column[order] for name, column in rows.items()}


@pytest.mark.slow
def test_a_larger_pool_gives_the_selection_of_the_smaller_pool_in_it(words):
    """One pool serves every IPC and number of subgroups."""
    small = ("ipc=4", "sample.subgroups=2")
    large = ("ipc=4", "sample.pool_ipc=6", "sample.subgroups=3", "select.subgroups=2")
    own, shared = steps_of(words, *small, upto="export"), steps_of(words, *large, upto="export")
    assert shared["candidates"].fingerprint == steps_of(words, upto="sample")["candidates"].fingerprint
    first, second = (steps["selection"].directory.read_json("selection.json") for steps in (own, shared))
    assert first["selection"] == second["selection"]
    # batches of other rows: round-off
    assert first["objective"] == pytest.approx(second["objective"], abs=1e-5)
    assert len(own["distilled"].manifest["images"]) == len(shared["distilled"].manifest["images"]) == 12


def test_one_subgroup_disables_selection(words):
    selection = steps_of(words, "select.subgroups=1")["selection"].directory.read_json("selection.json")
    assert set(selection["selection"].values()) == {0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("sample.start=inversion", "sample.start_level=600"), ("sample.sampler=dpm", "sample.start=inversion")],
)
def test_inversions_and_dpm_give_the_same_for_any_number_of_actors(words, options):
    options += ("finetune.epochs=0",)
    steps = steps_of(words, *options, "workers.actors=1", upto="sample")
    one = candidates(steps)
    steps["candidates"].directory.delete()
    three = candidates(steps_of(words, *options, "workers.actors=3", upto="sample"))
    for name in one:
        assert np.array_equal(one[name], three[name]), name


def test_only_a_pool_from_inversions_reads_inversions(words):
    for start, inputs in (("noise", {"adapter"}), ("inversion", {"adapter", "inversions", "features"})):
        *_, sample = plan(planned.context_of(words, f"sample.start={start}"), "sample")
        assert set(sample.parents) == inputs


@pytest.mark.parametrize("word", ["sample.pool_ipc=3", "select.subgroups=9"])
def test_a_pool_smaller_than_the_set_is_refused(words, word):
    with pytest.raises(InputError, match=word.partition("=")[0]):
        planned.config_of(words, word)


def test_initial_latents_are_assigned_in_order_and_again_from_the_first():
    starts = InitialLatents(np.zeros((5, 1, 1, 1), np.float16), 0.5, np.array([0, 2, 5]), pool_ipc=2)
    subgroup, index = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert starts.rows(np.zeros(4, int), subgroup, index).tolist() == [0, 1, 0, 1]
    assert starts.rows(np.ones(4, int), subgroup, index).tolist() == [2, 3, 4, 2]


def test_initial_latents_survive_a_round_trip_through_storage(tmp_path):
    latents = np.random.default_rng(0).normal(size=(5, 4, 2, 2)).astype(np.float16)
    starts = InitialLatents(latents, 0.75, np.array([0, 2, 5]), pool_ipc=2)
    starts.save(open_directory(str(tmp_path)))
    loaded = InitialLatents.load(open_directory(str(tmp_path)))
    assert np.array_equal(loaded.latents, latents)
    assert np.array_equal(loaded.offsets, starts.offsets)
    assert (loaded.noise, loaded.pool_ipc) == (0.75, 2)
