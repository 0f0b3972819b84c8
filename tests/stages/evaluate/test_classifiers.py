"""Trainings over Ray: what is refused before any begins, and that Ray changes no score."""

import math
from dataclasses import replace

import numpy as np
import pytest
from flat import opened
from PIL import Image

from ims3_ray.cluster.machine import Machine, find_machine
from ims3_ray.config.settings import Workers
from ims3_ray.data.distilled import DistilledImage, DistilledSet, to_table, write_parquet
from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import PROTOCOLS, protocols
from ims3_ray.evaluation.train import Score
from ims3_ray.models.device import Numerics
from ims3_ray.stages.evaluate.classifiers import (
    classifier_resources,
    classifier_seeds,
    pixels_of,
    read_pixels,
    score_in_looks,
    summarise,
    train_all,
)
from ims3_ray.stages.evaluate.stage import MeanCurve
from ims3_ray.storage.artifacts import open_directory

SMOKE = PROTOCOLS["smoke"]
CLASSES = ("blue", "red")
CPU = Machine("cpu", 1, 0, 1e9, Workers())


def pixels(per_class, seed, labels=(0, 1)):
    labels = np.repeat(labels, per_class)
    draws = np.random.default_rng(seed).integers(0, 128, (len(labels), 3, 16, 16))
    draws[:, 0] += 100 * labels[:, None, None]
    return draws.astype(np.uint8), labels


def run_of(last, images=4):
    return Score(last, last, [(1, last)], [], 0.0, Numerics("cpu"), images)


def test_ray_gives_what_the_plain_call_gives_for_every_network_set_and_seed(ray_cluster):
    here, tests = find_machine(Workers()), pixels(6, 9)
    shared, other = pixels(3, 0), pixels(8, 1)
    sets = {("distilled", 5): shared, ("distilled", 6): shared, ("full", 5): other}
    narrow = SMOKE.model_copy(update={"width": 4})
    scores = train_all(sets, tests, [SMOKE, narrow], CLASSES, here)
    assert list(scores) == [SMOKE.label, narrow.label]
    for rules in (SMOKE, narrow):
        assert {name: list(found) for name, found in scores[rules.label].items()} == {
            "distilled": [5, 6],
            "full": [5],
        }
        for name, seed in sets:
            *_, plain = score_in_looks(sets[name, seed], tests, rules, 2, seed, here.device)
            assert replace(scores[rules.label][name][seed], seconds=0) == replace(plain, seconds=0)


@pytest.mark.parametrize("size", [16, 28, 61])
def test_one_png_is_the_same_pixels_as_a_real_image_and_as_a_distilled_one(ray_cluster, tmp_path, size):
    pngs = []
    for name in CLASSES:
        (tmp_path / "set" / name).mkdir(parents=True)
        draws = np.random.default_rng(len(name)).integers(0, 256, (size, size, 3)).astype(np.uint8)
        path = tmp_path / "set" / name / "0.png"
        Image.fromarray(draws).save(path)
        pngs.append(path.read_bytes())
    real = read_pixels(opened(tmp_path / "set", tmp_path), np.arange(2), 32)
    out = open_directory(str(tmp_path / "distilled"))
    images = [DistilledImage(label, 0, 0, 0, 0, png) for label, png in enumerate(pngs)]
    write_parquet(out, lambda: [to_table(images, CLASSES, len(images))])
    distilled = pixels_of(DistilledSet(out), 32)
    for ours, theirs in zip(real, distilled, strict=True):
        assert np.array_equal(ours, theirs)


def test_every_look_is_heard_once_while_training_and_agrees_with_the_history(ray_cluster):
    heard = {}

    def hear(label, name, seed, step, accuracy):
        heard.setdefault((label, name, seed), []).append((step, accuracy))

    sets = {("distilled", seed): pixels(3, 0) for seed in (5, 6)}
    scores = train_all(sets, pixels(6, 9), [SMOKE], CLASSES, find_machine(Workers()), hear)
    for seed in (5, 6):
        assert heard[SMOKE.label, "distilled", seed] == [
            tuple(look) for look in scores[SMOKE.label]["distilled"][seed].history
        ]
        assert len(heard[SMOKE.label, "distilled", seed]) == SMOKE.evaluations


def test_a_listener_that_raises_ends_the_trainings(ray_cluster):
    def stop(*look):
        raise SystemExit(0)

    endless = SMOKE.model_copy(update={"steps": 10**6, "evaluations": 10**5})
    with pytest.raises(SystemExit):
        train_all(
            {("distilled", 5): pixels(3, 0)}, pixels(6, 9), [endless], CLASSES, find_machine(Workers()), stop
        )
    *_, after = score_in_looks(pixels(3, 0), pixels(6, 9), SMOKE, 2, 5, "cpu")
    fresh = train_all(
        {("distilled", 5): pixels(3, 0)}, pixels(6, 9), [SMOKE], CLASSES, find_machine(Workers())
    )
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


def test_a_set_without_a_class_that_is_scored_is_refused_before_any_training():
    sets = {("mine", 0): pixels(3, 0, labels=(0,))}
    with pytest.raises(
        InputError, match=r"set 'mine': has no image of 1 of the 2 classes .* 'red'; add images"
    ):
        train_all(sets, pixels(2, 1), [SMOKE], CLASSES, CPU)


def test_a_network_too_deep_for_the_images_is_refused_before_any_training(monkeypatch):
    # a training would say the same, but later
    monkeypatch.setattr("ims3_ray.stages.evaluate.classifiers.ray", None)
    sets = {("mine", 0): pixels(3, 0)}
    with pytest.raises(InputError, match="resnet18 is too deep for images of 16 px, it needs at least 33"):
        train_all(sets, pixels(2, 1), protocols("smoke", ["convnet3", "resnet18"]), CLASSES, CPU)


def test_no_two_seeds_of_a_run_share_a_classifier_seed():
    assert classifier_seeds(0, 3) == [0, 1, 2]
    seen = [seed for run in range(5) for seed in classifier_seeds(run, 1000)]
    assert len(set(seen)) == len(seen)


def test_several_classifiers_share_a_gpu_and_none_takes_one_without():
    on_gpu = Machine("cuda", 8, 1, 1e9, Workers(gpus_per_classifier=0.5))
    assert classifier_resources(on_gpu) == on_gpu.actor_resources | {"num_gpus": 0.5}
    assert "num_gpus" not in classifier_resources(Machine("cpu", 8, 1, 1e9, Workers()))


def test_the_summary_keeps_every_seed_with_its_value():
    found = summarise({"random": {7: run_of(0.5), 9: run_of(0.7)}}, [])["random"]
    assert found["seeds"] == [7, 9]
    assert found["last"]["values"] == [0.5, 0.7]
    assert found["images"] == 4
    assert found["last"]["mean"] == pytest.approx(0.6)
    assert found["last"]["count"] == 2
    assert "label_robust_score" not in found


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
