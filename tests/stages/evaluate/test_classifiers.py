"""Trainings over Ray: what is refused before any begins, and that Ray changes no score."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flat import opened
from PIL import Image
from stored import write_set

from ims3_ray.cluster.resources import Machine, find_machine
from ims3_ray.config.settings import Workers
from ims3_ray.data.distilled import DistilledImage, list_images
from ims3_ray.data.loader import BatchReader
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import PROTOCOLS, get_protocols
from ims3_ray.evaluation.results import protocol_title
from ims3_ray.evaluation.train import Score
from ims3_ray.models.device import Numerics
from ims3_ray.stages.evaluate import classifiers
from ims3_ray.stages.evaluate.classifiers import (
    classifier_seeds,
    local_pixels,
    numerics_deviation,
    open_pixels,
    stream_score,
    summarise,
    train_all,
)
from ims3_ray.stages.evaluate.stage import MeanCurve
from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.disk_cache import cache_folder

SMOKE = PROTOCOLS["smoke"]
CLASSES = ("blue", "red")
CPU = Machine("cpu", 1, 0, 1e9, Workers())


@pytest.fixture
def images(tmp_path):
    """A set of so many images a class, 16 pixels a side, by the seed of its noise."""

    def write(per_class, seed):
        draws, folder = np.random.default_rng(seed), tmp_path / f"set-{seed}"
        for label, name in enumerate(CLASSES):
            (folder / name).mkdir(parents=True)
            noise = draws.integers(0, 128, (per_class, 16, 16, 3))
            noise[..., 0] += 100 * label
            for number, pixels in enumerate(noise.astype(np.uint8)):
                Image.fromarray(pixels).save(folder / name / f"{number}.png")
        return opened(folder, tmp_path)

    return write


def run_of(last, images=4):
    return Score(last, last, [(1, last)], [], Numerics("cpu"), images)


def test_ray_gives_what_the_plain_call_gives_for_every_network_set_and_seed(ray_cluster, images):
    here, tests = find_machine(Workers()), images(6, 9)
    shared, other = images(3, 0), images(8, 1)
    sets = {("distilled", 5): shared, ("distilled", 6): shared, ("full", 5): other}
    narrow = SMOKE.model_copy(update={"width": 4})
    scores = train_all(sets, tests, [SMOKE, narrow], here)
    assert list(scores) == [SMOKE.label, narrow.label]
    for rules in (SMOKE, narrow):
        assert {name: list(found) for name, found in scores[rules.label].items()} == {
            "distilled": [5, 6],
            "full": [5],
        }
        for name, seed in sets:
            *_, plain = stream_score(sets[name, seed], tests, rules, seed, here.device, None)
            assert scores[rules.label][name][seed] == plain


def test_images_are_read_where_classifiers_train_and_nothing_of_them_is_left_there(
    ray_cluster, images, monkeypatch
):
    def refuse(*_):
        pytest.fail("read")

    monkeypatch.setattr(BatchReader, "__call__", refuse)
    sets, tests = {("mine", seed): images(3, seed) for seed in (5, 6)}, images(6, 9)
    train_all(sets, tests, [SMOKE], find_machine(Workers()))
    keys = {local_pixels(of_set, SMOKE.image_size).key for of_set in (tests, *sets.values())}
    assert len(keys) == 3
    assert not keys & {entry.name for entry in cache_folder().iterdir() if entry.is_dir()}


@pytest.mark.parametrize("size", [16, 28, 61])
def test_one_png_is_the_same_pixels_as_a_real_image_and_as_a_distilled_one(tmp_path, monkeypatch, size):
    pngs = []
    for name in CLASSES:
        (tmp_path / "set" / name).mkdir(parents=True)
        draws = np.random.default_rng(len(name)).integers(0, 256, (size, size, 3)).astype(np.uint8)
        path = tmp_path / "set" / name / "0.png"
        Image.fromarray(draws).save(path)
        pngs.append(path.read_bytes())
    out = open_directory(str(tmp_path / "distilled"))
    made = [DistilledImage(label, 0, 0, 0, 0, png) for label, png in enumerate(pngs)]
    write_set(out, made, CLASSES, 1)
    real, distilled = opened(tmp_path / "set", tmp_path), list_images(out, CLASSES)
    with open_pixels(real, 32) as ours:
        monkeypatch.setattr(BatchReader, "__call__", lambda *_: pytest.fail("not from the one file"))
        with open_pixels(distilled, 32) as theirs:
            assert all(map(torch.equal, ours, theirs))


def test_every_look_is_heard_once_while_training_and_agrees_with_the_history(ray_cluster, images):
    heard = {}

    def hear(label, name, seed, step, accuracy):
        heard.setdefault((label, name, seed), []).append((step, accuracy))

    sets = dict.fromkeys([("distilled", 5), ("distilled", 6)], images(3, 0))
    scores = train_all(sets, images(6, 9), [SMOKE], find_machine(Workers()), hear)
    for seed in (5, 6):
        assert heard[SMOKE.label, "distilled", seed] == [
            tuple(look) for look in scores[SMOKE.label]["distilled"][seed].history
        ]
        assert len(heard[SMOKE.label, "distilled", seed]) == SMOKE.evaluations


def test_kept_scores_are_not_computed_again_unless_damaged(ray_cluster, images, tmp_path, monkeypatch):
    sets = dict.fromkeys([("distilled", 5), ("distilled", 6), ("random", 5)], images(3, 0))
    tests, out, heard, again = images(6, 9), open_directory(str(tmp_path / "out")), [], []
    scores = train_all(sets, tests, [SMOKE], CPU, lambda *look: heard.append(look), None, out)
    files = sorted(out.files())
    assert len(files) == len(sets)
    (out / files[0]).delete()
    out.write(files[1], out.read(files[1]).replace(b"0.", b"1.", 1))
    jobs, stream = [], classifiers.stream_jobs
    monkeypatch.setattr(classifiers, "stream_jobs", lambda f, js, **o: jobs.extend(js) or stream(f, js, **o))
    assert train_all(sets, tests, [SMOKE], CPU, lambda *look: again.append(look), None, out) == scores
    assert len(jobs) == 2
    assert sorted(again) == sorted(heard)
    assert sorted(out.files()) == files


def test_a_listener_that_raises_ends_the_trainings(ray_cluster, images):
    sets, tests, here = {("distilled", 5): images(3, 0)}, images(6, 9), find_machine(Workers())

    def stop(*look):
        raise SystemExit(0)

    endless = SMOKE.model_copy(update={"steps": 10**6, "evaluations": 10**5})
    with pytest.raises(SystemExit):
        train_all(sets, tests, [endless], here, stop)
    *_, after = stream_score(sets["distilled", 5], tests, SMOKE, 5, "cpu", None)
    fresh = train_all(sets, tests, [SMOKE], here)
    assert fresh[SMOKE.label]["distilled"][5].last == after.last  # and leave room for others


def test_the_curve_tells_the_mean_of_each_step_once_all_seeds_are_there():
    told = []
    curve = MeanCurve("quick", "distilled", [1, 2], lambda step, mean: told.append((step, mean)))
    looks = [(1, 10, 0.2), (2, 10, 0.4), (2, 20, 0.6), (2, 10, 0.4), (1, 20, 0.8)]
    for seed, step, accuracy in looks:
        curve("quick", "distilled", seed, step, accuracy)
        curve("quick", "random", seed, step, 0.0)
        curve("other", "distilled", seed, step, 0.0)
    assert told == [(10, pytest.approx(0.3)), (20, pytest.approx(0.7))]


def test_a_set_without_a_class_that_is_scored_is_refused_before_any_training(images):
    whole = images(3, 0)
    sets = {("mine", 0): whole.take(np.flatnonzero(whole.labels == 0))}
    with pytest.raises(
        InputError, match=r"set 'mine': has no image of 1 of the 2 classes .* 'red'; add images"
    ):
        train_all(sets, whole, [SMOKE], CPU)


def test_a_network_too_deep_for_the_images_is_refused_before_any_training(monkeypatch, images):
    # a training would say the same, but later
    monkeypatch.setattr("ims3_ray.stages.evaluate.classifiers.ray", None)
    whole = images(3, 0)
    with pytest.raises(InputError, match="resnet18 needs images of at least 33 px, not 16"):
        train_all({("mine", 0): whole}, whole, get_protocols("smoke", ["convnet3", "resnet18"]), CPU)


def test_no_two_seeds_of_a_run_share_a_classifier_seed():
    assert classifier_seeds(0, 3) == [0, 1, 2]
    seen = [seed for run in range(5) for seed in classifier_seeds(run, 1000)]
    assert len(set(seen)) == len(seen)


def test_the_summary_keeps_every_seed_with_its_value():
    found = summarise({"random": {7: run_of(0.5), 9: run_of(0.7)}}, [])["random"]
    assert found["seeds"] == [7, 9]
    assert found["last"]["values"] == [0.5, 0.7]
    assert found["images"] == 4
    assert found["last"]["mean"] == pytest.approx(0.6)
    assert found["last"]["count"] == 2
    assert "label_robust_score" not in found


def test_the_result_names_numerics_other_than_plain_fp32():
    bf16 = replace(run_of(0.5), numerics=Numerics("cuda", "bf16"))
    compiled = replace(run_of(0.5), numerics=Numerics("cuda", "bf16", compiled=True))
    found = {"quick-v2": {"distilled": {0: bf16}, "full": {0: compiled}, "random": {0: run_of(0.5)}}}
    assert numerics_deviation(found) == "bf16 or bf16, compiled"
    document = {"protocol": "quick-v2", "numerics": numerics_deviation(found)}
    assert protocol_title(document) == "quick-v2 (bf16 or bf16, compiled; published: fp32)"
    assert numerics_deviation({"quick-v2": {"random": {0: run_of(0.5)}}}) == ""
    assert protocol_title({"protocol": "quick-v2"}) == "quick-v2"


def test_the_label_robust_score_needs_the_full_set_and_random_images():
    sets = {
        "distilled": {0: run_of(0.7), 1: run_of(0.9)},
        "random": {0: run_of(0.6)},
        "full": {0: run_of(0.9)},
    }
    a = ((0.8 - 0.6) - (0.9 - 0.8)) / 2
    expected = (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
    assert summarise(sets, ["distilled"])["distilled"]["label_robust_score"] == pytest.approx(expected)
    for missing in ("random", "full"):
        rest = {name: found for name, found in sets.items() if name != missing}
        assert summarise(rest, ["distilled"])["distilled"]["label_robust_score"] is None
