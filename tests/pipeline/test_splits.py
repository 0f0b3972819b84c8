"""Checks of training and scored image folders."""

import shutil

import pytest
from PIL import Image
from tiny import THREE, tiny_words, write_images

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.settings import Workers
from ims3_ray.data.images import open_images
from ims3_ray.errors import InputError
from ims3_ray.pipeline.inputs import check_splits, image_places, skipped_warnings
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.storage.artifacts import open_storage


def opened(folder, storage, name):
    return open_images(str(folder), storage, name=name, seed=0, max_bad_fraction=0.0)


@pytest.fixture
def splits(tmp_path):
    write_images(tmp_path / "train", 6, seed=0)
    write_images(tmp_path / "test", 4, seed=1)
    storage = open_storage(str(tmp_path / "storage"))
    return tmp_path, lambda: {
        split: opened(tmp_path / split, storage, f"data.{split}") for split in ("train", "test")
    }


def prepared(model, images, tmp_path, *words):
    config = load_config("digits", parse_overrides([*tiny_words(model, images, tmp_path / "runs"), *words]))
    image_places(config)
    return prepare(config, Machine("cpu", 2, 0, 4e9, Workers()))


def test_separate_folders_give_no_warning(splits):
    assert check_splits(splits[1](), 0.0) == []


def test_shared_files_above_the_limit_are_an_error_that_names_them(splits):
    root, both = splits
    shutil.copy(root / "train" / "red" / "002.png", root / "test" / "red" / "renamed.png")
    with pytest.raises(
        InputError, match=r"data\.test: 1 of 13 .*red/renamed\.png = red/002\.png.*max_overlap_fraction"
    ):
        check_splits(both(), 0.01)
    (line,) = check_splits(both(), 0.1)
    assert "red/renamed.png = red/002.png" in line


def test_skipped_files_and_folders_are_named(tmp_path):
    write_images(tmp_path / "train", 6, seed=0)
    (tmp_path / "train" / "teal").mkdir()
    (tmp_path / "train" / "red" / "notes.txt").write_text("no image")
    storage = open_storage(str(tmp_path / "storage"))
    images = open_images(str(tmp_path / "train"), storage, name="data.train", seed=0, max_bad_fraction=0.1)
    files, folders = skipped_warnings({"train": images})
    assert "1 of 19 files: red/notes.txt" in files
    assert folders.endswith("'teal'")


def test_training_folder_as_test_folder_is_an_error(tiny_model, tiny_images, tmp_path):
    (tmp_path / "link").symlink_to(tiny_images / "train")
    for same in (tiny_images / "train", tiny_images / "test" / ".." / "train", tmp_path / "link"):
        with pytest.raises(InputError, match=r"data\.test: .* is the training folder"):
            prepared(tiny_model, tiny_images, tmp_path, f"data.test={same}")


def test_nested_folders_are_an_error(tiny_model, tiny_images, tmp_path):
    with pytest.raises(InputError, match=r"data\.test: .* nested"):
        prepared(tiny_model, tiny_images, tmp_path, f"data.train={tiny_images}")
    beside = write_images(tmp_path / "train-more", 12, seed=5)  # shares a prefix with another folder's name
    shutil.copytree(tiny_images / "test", tmp_path / "train")
    assert (
        prepared(
            tiny_model, tiny_images, tmp_path, f"data.train={beside}", f"data.test={tmp_path / 'train'}"
        ).notes
        == ()
    )


def test_imagenet_files_on_the_wrong_side_give_a_warning(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        write_images(tmp_path / split, 4, seed, classes=THREE)
        for path in (tmp_path / split).glob("*/*.png"):
            Image.open(path).save(path.with_name(f"{path.parent.name}_{path.stem}.JPEG"), "JPEG")
            path.unlink()
    storage = open_storage(str(tmp_path / "storage"))
    images = {split: opened(tmp_path / split, storage, f"data.{split}") for split in ("train", "test")}
    (line,) = check_splits(images, 0.0)
    assert "data.test: 12 of 12 images" in line
    assert "imagewoof2" in line
    assert check_splits({"train": images["train"], "validation": images["test"]}, 0.0) == []
