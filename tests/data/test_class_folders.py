"""`data.classes` limits which class folders are listed, read and cached."""

import pytest
from flat import opened
from tiny import THREE, write_images

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.data import images as images_module
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory


@pytest.fixture
def train(imagenet_tree):
    return imagenet_tree / "train"


@pytest.fixture
def calls(monkeypatch):
    """calls(method) → the list of the first arguments of `Directory`'s method."""

    def record(method):
        plain, arguments = getattr(Directory, method), []
        act = lambda self, name="": arguments.append(name) or plain(self, name)  # noqa: E731
        monkeypatch.setattr(Directory, method, act)
        return arguments

    return record


def test_other_folders_are_neither_listed_nor_read(train, tmp_path, calls):
    listed, read = calls("list_files"), calls("read")
    images = opened(train, tmp_path, classes=THREE[:2])
    assert (images.classes, images.counts().tolist(), images.bad) == (THREE[:2], [12, 12], {})
    assert sorted(listed) == sorted(THREE[:2])
    assert {name.split("/")[0] for name in read} == set(THREE[:2])
    with pytest.raises(InputError, match=r"n01440764/a\.JPEG"):
        opened(train, tmp_path)


def test_on_an_object_store_only_the_named_prefixes_are_listed(train, tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem
    from pyarrow import fs

    class Bucket(MemoryFileSystem):
        store, pseudo_dirs, cacheable, found = {}, [""], False, []

        def find(self, path, **options):
            self.found.append(path)
            return super().find(path, **options)

    bucket = Bucket()
    for file in train.glob("*/*"):
        bucket.pipe(f"/bucket/{file.relative_to(tmp_path)}", file.read_bytes())
    there = Directory(fs.PyFileSystem(fs.FSSpecHandler(bucket)), "/bucket/train")
    monkeypatch.setattr(images_module, "open_directory", lambda location: there)
    images = opened("s3://bucket/train", tmp_path, classes=THREE)
    assert images.counts().tolist() == [12, 12, 12]
    assert sorted(bucket.found) == [f"/bucket/train/{name}" for name in THREE]
    monkeypatch.undo()
    assert images.fingerprint == opened(train, tmp_path, classes=THREE).fingerprint


def test_a_subset_equals_a_tree_of_only_those_classes(train, tmp_path):
    alone = opened(write_images(tmp_path / "alone", 12, 0, classes=THREE), tmp_path)
    assert opened(train, tmp_path, classes=THREE).fingerprint == alone.fingerprint
    assert opened(train, tmp_path, classes=THREE[:2]).fingerprint != alone.fingerprint


def test_cached_looks_of_a_class_serve_every_subset(train, tmp_path, calls):
    opened(train, tmp_path, classes=THREE[:2])
    read = calls("read")
    opened(train, tmp_path, classes=THREE[1:])
    folders = [name.split("/")[0] for name in read]
    # the sample reads each image once; new classes are hashed too
    assert (folders.count(THREE[1]), folders.count(THREE[2])) == (12, 24)


def test_missing_and_empty_class_folders_are_named(train, tmp_path):
    wanted = load_config("imagewoof").data.classes
    with pytest.raises(InputError, match=r"^data\.train: .*lacks 7 of the 10") as refused:
        opened(train, tmp_path, classes=wanted)
    assert str(refused.value).count("'n0") == 5
    (train / "n09999999").mkdir()
    with pytest.raises(InputError, match="'n09999999'"):
        opened(train, tmp_path, classes=(*THREE, "n09999999"))


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ("[a, ../b]", r"'\.\./b'"),
        ("[a, .b]", r"'\.b'"),
        ("[a, a]", "twice"),
        ("[a]", "at least 2"),
        ("[a, 1]", r"data\.classes\.1"),
        ("[]", "at least 2"),
    ],
)
def test_invalid_class_names_are_an_error(classes, named):
    with pytest.raises(InputError, match=named):
        load_config("digits", parse_overrides([f"data.classes={classes}"]))
