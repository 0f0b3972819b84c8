"""What each classifier is trained on."""

import numpy as np
import pytest
from flat import opened, png
from stored import artefact_of, features_of
from tiny import write_images

from ims3_ray.stages.evaluate.compare import FULL_SEEDS, Baseline, Real, choose_baselines, training_sets
from ims3_ray.storage.rows import read_index
from ims3_ray.storage.schemas import FEATURES


def test_every_seed_trains_on_the_sets_and_baselines_and_the_first_on_all_images(tmp_path):
    images, seeds = opened(write_images(tmp_path / "set", 3, seed=0), tmp_path), [7, 8, 9, 10, 11]
    own = {"mine": images.take(np.array([2]))}

    def one(place):
        return Baseline(np.array([place]), np.array([0]))

    choices = {("random", seed): one(place) for place, seed in enumerate(seeds)}
    choices |= {("herding", seed): one(1) for seed in seeds}
    sets = training_sets(own, choices, images, seeds, full=True)
    assert {seed for name, seed in sets if name == "mine"} == set(seeds)
    assert [sets["random", seed].paths for seed in seeds] == [(path,) for path in images.paths[:5]]
    assert len({id(sets["herding", seed]) for seed in seeds}) == 1
    assert [seed for name, seed in sets if name == "full"] == seeds[:FULL_SEEDS]
    assert sets["full", 7] is images
    assert not any(name == "full" for name, _ in training_sets(own, choices, images, seeds, full=False))


def test_features_of_an_image_of_two_classes_are_found_by_its_class(tmp_path):
    root = tmp_path / "set"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for value in (0, 10 if name == "a" else 200):  # the first image is the same
            (root / name / f"{value}.png").write_bytes(png(value))
    images = opened(root, tmp_path)
    columns = {"label": images.labels, "image_id": np.array(images.ids, object)}
    columns["feature"] = np.eye(4, dtype=np.float32)
    index = read_index(artefact_of(tmp_path / "f", FEATURES, columns), FEATURES, ["image_id", "label"])
    for one in choose_baselines(Real.by_id(images, index), ["random"], [[1, 1]], range(4)).values():
        assert one.image_rows.tolist() == one.feature_rows.tolist()


@pytest.mark.parametrize(("draws", "expected"), [(None, {4, 5}), (1, {4, 5}), (4, {4, 5, 6, 7})])
def test_random_images_are_drawn_as_often_as_asked_and_never_less_than_there_are_seeds(
    draws, expected, tmp_path
):
    images = opened(write_images(tmp_path / "set", 3, seed=0), tmp_path)
    features = np.random.default_rng(0).standard_normal((len(images), 4)).astype(np.float32)
    real = Real(images, images.ids, images.ids, features_of(features, images.labels, tmp_path / "features"))
    choices = choose_baselines(real, ["random"], [[1] * len(images.classes)], [4, 5], draws)
    assert {seed for name, seed in choices if name == "random"} == expected


def test_files_that_the_embedding_could_not_read_are_never_drawn(tmp_path):
    images = opened(write_images(tmp_path / "set", 3, seed=0), tmp_path)
    rows = np.flatnonzero(np.arange(len(images)) % 3)  # one of three images per class is unreadable
    features = features_of(np.eye(len(images), dtype=np.float32)[rows], images.labels[rows], tmp_path / "f")
    real = Real(images, images.paths, [images.paths[row] for row in rows], features)
    choices = choose_baselines(real, ["random"], [[2] * len(images.classes)], range(4))
    assert all(choice.image_rows.tolist() == rows.tolist() for choice in choices.values())
