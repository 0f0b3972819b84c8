"""Checks of training and scored image folders."""

import shutil

import pytest
from flat import opened
from PIL import Image
from planned import config_of
from tiny import THREE, tiny_words, write_images

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.pipeline.inputs import check_splits, image_places
from ims3_ray.pipeline.prepare import prepare


def both(root):
    return {split: opened(root / split, root, f"data.{split}") for split in ("train", "test")}


@pytest.fixture
def splits(tmp_path):
    write_images(tmp_path / "train", 6, seed=0)
    write_images(tmp_path / "test", 4, seed=1)
    return tmp_path


@pytest.fixture
def notes_of(tiny_model, tiny_images, tmp_path):
    def notes_of(**places):
        words = tiny_words(tiny_model, tiny_images, tmp_path / "runs")
        config = config_of(words, *(f"data.{split}={place}" for split, place in places.items()))
        image_places(config)
        return prepare(config, Machine("cpu", 2, 0, 4e9, Workers())).notes

    return notes_of


def test_separate_folders_give_no_warning(splits):
    assert check_splits(both(splits), 0.0) == []


def test_shared_files_above_the_limit_are_an_error_that_names_them(splits):
    shutil.copy(splits / "train" / "red" / "002.png", splits / "test" / "red" / "renamed.png")
    shared = "red/renamed.png = red/002.png"
    with pytest.raises(InputError, match=rf"data\.test: 1 of 13 .*{shared}.*max_overlap_fraction"):
        check_splits(both(splits), 0.01)
    (line,) = check_splits(both(splits), 0.1)
    assert shared in line


def test_skipped_files_and_folders_are_named(splits):
    (splits / "train" / "teal").mkdir()
    (splits / "train" / "red" / "notes.txt").write_text("no image")
    files, folders = opened(splits / "train", splits, limit=0.1).skipped("data.train")
    assert "1 of 19 files: red/notes.txt" in files
    assert folders.endswith("'teal'")


def test_training_folder_as_test_folder_is_an_error(notes_of, tiny_images, tmp_path):
    (tmp_path / "link").symlink_to(tiny_images / "train")
    for same in (tiny_images / "train", tiny_images / "test" / ".." / "train", tmp_path / "link"):
        with pytest.raises(InputError, match=r"data\.test: .* is the training folder"):
            notes_of(test=same)


def test_nested_folders_are_an_error(notes_of, tiny_images, tmp_path):
    with pytest.raises(InputError, match=r"data\.test: .* nested"):
        notes_of(train=tiny_images)
    beside = write_images(tmp_path / "train-more", 12, seed=5)  # shares a prefix with another folder's name
    shutil.copytree(tiny_images / "test", tmp_path / "train")
    assert notes_of(train=beside, test=tmp_path / "train") == ()


def test_imagenet_files_on_the_wrong_side_give_a_warning(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        for path in write_images(tmp_path / split, 4, seed, classes=THREE).glob("*/*.png"):
            Image.open(path).save(path.with_name(f"{path.parent.name}_{path.stem}.JPEG"), "JPEG")
            path.unlink()
    images = both(tmp_path)
    (line,) = check_splits(images, 0.0)
    assert "data.test: 12 of 12 images" in line
    assert "imagewoof2" in line
    assert check_splits({"train": images["train"], "validation": images["test"]}, 0.0) == []
