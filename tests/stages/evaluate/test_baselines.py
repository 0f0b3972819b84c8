"""Baselines and coverage over Ray: class by class what the method gives, and what is refused."""

import numpy as np
import pytest
from stored import features_of

from ims3_ray.errors import InputError
from ims3_ray.method.coresets import greedy_coverage, herding, medoids
from ims3_ray.method.coverage import RealClass, class_mean, class_metrics
from ims3_ray.stages.evaluate.baselines import ceiling, choose_coresets, measure_coverage, places_by_class

CLASSES = ("blue", "red")
COUNT, K = 3, 2


@pytest.fixture
def real(tmp_path):
    """12 images of one class and 20 of the other, in a mixed order."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], (12, 20)))
    features = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
    return features_of(features, labels, tmp_path / "real")


def test_every_class_gets_the_coreset_of_its_own_images(ray_cluster, real):
    chosen = choose_coresets(real, ["herding", "medoids"], COUNT, [4, 5], CLASSES)
    assert set(chosen) == {(name, seed) for name in ("herding", "medoids") for seed in (4, 5)}
    for (name, seed), rows in chosen.items():
        for label in (0, 1):
            own = np.flatnonzero(real.labels == label)
            x = real.take(own).read()
            expected = own[herding(x, COUNT) if name == "herding" else medoids(x, COUNT, seed)]
            assert rows[real.labels[rows] == label].tolist() == expected.tolist()


def test_coverage_over_ray_is_that_of_one_call_and_nothing_real_beats_the_ceiling_by_much(
    ray_cluster, real, tmp_path
):
    rows, features = ceiling(real, COUNT, K, CLASSES), real.read()
    own = [np.flatnonzero(real.labels == label) for label in (0, 1)]
    expected = [places[greedy_coverage(features[places], COUNT, K)] for places in own]
    assert rows.tolist() == np.concatenate(expected).tolist()
    sets = {
        "ceiling": real.take(rows),
        "noise": features_of(features[:8] + 1, real.labels[:8], tmp_path / "noise"),
    }
    found = measure_coverage(real, sets, K, CLASSES)
    for name, of_set in sets.items():
        of_class = {
            label: class_metrics(RealClass(features[own[label]], K), of_set.read()[of_set.labels == label])
            for label in (0, 1)
        }
        plain = class_mean(of_class)
        assert found[name] == plain
    assert found["ceiling"]["copy_rate"] == 1.0
    assert found["ceiling"]["coverage"] > found["noise"]["coverage"]


def test_a_class_too_small_for_the_choice_or_missing_from_a_set_is_named(real):
    with pytest.raises(InputError, match="class 'blue' has 12 readable images, and evaluation needs 13"):
        choose_coresets(real, ["herding"], 13, [0], CLASSES)
    only_blue = real.take(np.flatnonzero(real.labels == 0))
    with pytest.raises(InputError, match="set 'mine': has no image of class 'red'"):
        measure_coverage(real, {"mine": only_blue}, K, CLASSES)


def test_places_by_class_are_those_of_each_label_even_of_classes_without_images():
    labels = np.array([2, 0, 2, 4, 0])
    found = [places.tolist() for places in places_by_class(labels, 6)]
    assert found == [[1, 4], [], [0, 2], [], [3], []]
