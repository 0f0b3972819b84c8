"""Baselines and coverage over Ray: class by class what the method gives, and what is refused."""

import numpy as np
import pytest

from ims3_ray.errors import InputError
from ims3_ray.method.coresets import greedy_coverage, herding, medoids
from ims3_ray.method.coverage import class_coverage
from ims3_ray.stages.evaluate.baselines import METRICS, ceiling, choose_coresets, measure_all

CLASSES = ("blue", "red")
COUNT, K = 3, 2


@pytest.fixture
def real():
    """12 images of one class and 20 of the other, in a mixed order."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], (12, 20)))
    return np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32), labels


def test_every_class_gets_the_coreset_of_its_own_images(ray_cluster, real):
    chosen = choose_coresets(real, ["herding", "medoids"], COUNT, [4, 5], CLASSES)
    assert set(chosen) == {(name, seed) for name in ("herding", "medoids") for seed in (4, 5)}
    for (name, seed), rows in chosen.items():
        for label in (0, 1):
            own = np.flatnonzero(real[1] == label)
            x = real[0][own]
            expected = own[herding(x, COUNT) if name == "herding" else medoids(x, COUNT, seed)]
            assert rows[real[1][rows] == label].tolist() == expected.tolist()


def test_coverage_over_ray_is_that_of_one_call_and_nothing_real_beats_the_ceiling_by_much(ray_cluster, real):
    rows = ceiling(real, COUNT, K, CLASSES)
    expected = [
        np.flatnonzero(real[1] == c)[greedy_coverage(real[0][real[1] == c], COUNT, K)] for c in (0, 1)
    ]
    assert rows.tolist() == np.concatenate(expected).tolist()
    sets = {"ceiling": (real[0][rows], real[1][rows]), "noise": (real[0][:8] + 1, real[1][:8])}
    found = measure_all(real, sets, K, CLASSES)
    for name, (vectors, labels) in sets.items():
        plain = class_coverage(*real, vectors, labels, k=K).mean
        assert found[name] == {metric: plain[metric] for metric in METRICS}
    assert found["ceiling"]["copy_rate"] == 1.0
    assert found["ceiling"]["coverage"] > found["noise"]["coverage"]


def test_a_class_too_small_for_the_choice_or_missing_from_a_set_is_named(real):
    with pytest.raises(InputError, match="class 'blue' has 12 readable images, and evaluation needs 13"):
        choose_coresets(real, ["herding"], 13, [0], CLASSES)
    only_blue = real[0][real[1] == 0], real[1][real[1] == 0]
    with pytest.raises(InputError, match="set 'mine': has no image of class 'red'"):
        measure_all(real, {"mine": only_blue}, K, CLASSES)
