"""`data.classes` limits which class folders are listed, read and cached."""

import pytest
from flat import opened
from tiny import OTHERS, THREE, write_images

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.data import images as images_module
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory


def test_other_folders_are_neither_listed_nor_read(imagenet_tree, monkeypatch):
    listed, read = [], []
    listing, reading = Directory.list_files, Directory.read
    monkeypatch.setattr(
        Directory, "list_files", lambda self, within="": listed.append(within) or listing(self, within)
    )
    monkeypatch.setattr(Directory, "read", lambda self, name: read.append(name) or reading(self, name))
    images = opened(imagenet_tree / "train", imagenet_tree, classes=THREE[:2])
    assert images.classes == THREE[:2]
    assert images.counts().tolist() == [12, 12]
    assert images.bad == {}
    assert sorted(listed) == sorted(THREE[:2])
    assert {name.split("/")[0] for name in read} == set(THREE[:2])
    with pytest.raises(InputError, match=r"n01440764/a\.JPEG"):
        opened(imagenet_tree / "train", imagenet_tree)


def test_on_an_object_store_only_the_named_prefixes_are_listed(imagenet_tree, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem
    from pyarrow import fs

    class Bucket(MemoryFileSystem):
        store, pseudo_dirs, cacheable, found = {}, [""], False, []

        def find(self, path, **options):
            self.found.append(path)
            return super().find(path, **options)

    bucket = Bucket()
    for name in (*THREE, *OTHERS):
        for file in (imagenet_tree / "train" / name).iterdir():
            bucket.pipe(f"/bucket/train/{name}/{file.name}", file.read_bytes())
    there = Directory(fs.PyFileSystem(fs.FSSpecHandler(bucket)), "/bucket/train")
    monkeypatch.setattr(images_module, "open_directory", lambda location: there)
    images = opened("s3://bucket/train", imagenet_tree, classes=THREE)
    assert images.counts().tolist() == [12, 12, 12]
    assert sorted(bucket.found) == [f"/bucket/train/{name}" for name in THREE]
    monkeypatch.undo()
    assert images.fingerprint == opened(imagenet_tree / "train", imagenet_tree, classes=THREE).fingerprint


def test_a_subset_equals_a_tree_of_only_those_classes(imagenet_tree, tmp_path):
    alone = opened(write_images(tmp_path / "alone", 12, 0, classes=THREE), imagenet_tree)
    assert opened(imagenet_tree / "train", imagenet_tree, classes=THREE).fingerprint == alone.fingerprint
    assert opened(imagenet_tree / "train", imagenet_tree, classes=THREE[:2]).fingerprint != alone.fingerprint


def test_cached_looks_of_a_class_serve_every_subset(imagenet_tree, monkeypatch):
    opened(imagenet_tree / "train", imagenet_tree, classes=THREE[:2])
    read, reading = [], Directory.read
    monkeypatch.setattr(
        Directory, "read", lambda self, name: read.append(name.split("/")[0]) or reading(self, name)
    )
    opened(imagenet_tree / "train", imagenet_tree, classes=THREE[1:])
    # the sample reads each image once; new classes are hashed too
    assert (read.count(THREE[1]), read.count(THREE[2])) == (12, 24)


def test_missing_class_folders_are_named(imagenet_tree):
    wanted = load_config("imagewoof").data.classes
    with pytest.raises(InputError) as refused:
        opened(imagenet_tree / "train", imagenet_tree, classes=wanted)
    line = str(refused.value)
    assert line.startswith("data.train: ")
    assert "lacks 7 of the 10 class folders" in line
    assert line.count("'n0") == 5
    (imagenet_tree / "train" / "n09999999").mkdir()
    with pytest.raises(InputError, match=r"'n09999999' of .* holds no readable image"):
        opened(imagenet_tree / "train", imagenet_tree, classes=(*THREE, "n09999999"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("[a, ../b]", "'../b' can't be"),
        ("[a, .b]", "'.b' can't be"),
        ("[a, a]", "twice"),
        ("[a]", "at least 2"),
        ("[a, 1]", r"data\.classes\.1"),
        ("[]", "at least 2"),
    ],
)
def test_invalid_class_names_are_an_error(given, named):
    with pytest.raises(InputError, match=named):
        load_config("digits", parse_overrides([f"data.classes={given}"]))
