"""Data sets as Hugging Face `datasets` leaves them on a disk or in a bucket: the same images as class folders
hold.
"""

import io
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_store import BUCKET
from PIL import Image

from ims3_ray import progress
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.data import unpacking
from ims3_ray.data.images import open_images, open_labelled
from ims3_ray.data.pixels import decode
from ims3_ray.errors import InputError
from ims3_ray.pipeline.prepare import image_places, open_splits
from ims3_ray.pipeline.splits import check_splits
from ims3_ray.storage.artifacts import Directory, open_directory, open_storage

NAMES = ["red", "green", "blue"]  # not sorted, so that a label is no place among the sorted names
LABELS = [0, 2, 1, 2, 0, 1]
EXPECTED = [("blue", 1), ("blue", 3), ("green", 2), ("green", 5), ("red", 0), ("red", 4)]

datasets.disable_progress_bars()


def png(value):
    sink = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def made(first=0, labels=LABELS, names=NAMES, columns=("image", "label")):
    """A data set of flat images with the values `first`, `first` + 1, …"""
    kind = (
        datasets.ClassLabel(names=names)
        if names
        else datasets.Value("int64" if isinstance(labels[0], int) else "string")
    )
    cells = [{"bytes": png(first + place), "path": None} for place in range(len(labels))]
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: kind})
    return datasets.Dataset.from_dict({columns[0]: cells, columns[1]: labels}, features=features)


def saved(place, **options):
    made(**options).save_to_disk(place)
    return place


def with_splits(form, folder, **firsts):
    """A folder with the splits, each with images of its own."""
    folder.mkdir()
    if form == "saved":
        datasets.DatasetDict({split: made(first) for split, first in firsts.items()}).save_to_disk(folder)
    for split, first in firsts.items() if form == "parquet" else ():
        for shard in range(2):
            made(first).shard(2, shard).to_parquet(folder / f"{split}-{shard:05d}-of-00002.parquet")
    return folder


def opened(place, tmp_path, name="data.train", **options):
    storage = open_storage(str(tmp_path / "storage"))
    options = {"max_bad_fraction": 0.0} | options
    return open_images(str(place), storage, name=name, seed=0, **options)


def splits(tmp_path, **places):
    """The sets of a run's places, as a run opens them."""
    words = [f"data.{split}={place}" for split, place in places.items()]
    config = load_config("digits", parse_overrides([*words, "evaluate.protocol=smoke"]))
    return open_splits(image_places(config), config.data, 0, open_storage(str(tmp_path / "storage")))


def values(images):
    """[(class, value)] of a set of flat images."""
    shown = [np.asarray(decode(images.directory.read(path)))[0, 0, 0] for path in images.paths]
    return sorted((images.classes[c], int(v)) for c, v in zip(images.labels, shown, strict=True))


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_form_holds_the_same_images(tmp_path):
    made().to_parquet(tmp_path / "file.parquet")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    made().to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    made().save_to_disk(tmp_path / "shards", num_shards=3)
    made(columns=("img", "fine_label")).save_to_disk(tmp_path / "cifar")
    made(names=None, labels=[NAMES[label] for label in LABELS]).save_to_disk(tmp_path / "words")
    with_splits("saved", tmp_path / "dict", train=0)
    with_splits("parquet", tmp_path / "parquet", train=0)
    for name in ("file.parquet", "hub", "shards", "cifar", "words", "dict", "dict/train", "parquet"):
        images = opened(tmp_path / name, tmp_path)
        assert values(images) == EXPECTED and images.classes == ("blue", "green", "red"), name
        assert images.place == str(tmp_path / name)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_each_field_takes_its_own_split_of_one_folder(form, tmp_path):
    three = with_splits(form, tmp_path / "three", train=0, validation=40, test=80)
    two = with_splits(form, tmp_path / "two", train=0, validation=40)
    firsts = {"train": 0, "validation": 40, "test": 80}
    for split, first in firsts.items():
        assert min(value for _, value in values(opened(three, tmp_path, f"data.{split}"))) == first
    assert values(opened(two, tmp_path, "data.test")) == values(opened(two, tmp_path, "data.validation"))


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_split_that_is_not_there_is_refused_with_those_that_are(form, tmp_path):
    folder = with_splits(form, tmp_path / "folder", train=0, extra=40)
    with pytest.raises(
        InputError, match=r"^data\.test: .*folder holds the splits 'extra', 'train', .*name one file, or the"
    ):
        opened(folder, tmp_path, "data.test")
    with pytest.raises(InputError, match=r"^--set: .*'extra', 'train', of which any could be meant"):
        opened(folder, tmp_path, "--set")


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_two_splits_of_a_folder_may_be_trained_and_scored_on_and_one_may_not(form, tmp_path):
    folder = with_splits(form, tmp_path / "folder", train=0, test=40)
    part = {"saved": "{}", "parquet": "{}-00000-of-00002.parquet"}[form].format
    for train, test in (("", ""), ("", part("test")), (part("train"), "")):
        images = splits(tmp_path, train=folder / train, test=folder / test)
        assert check_splits(images, 0.0) == []
    (tmp_path / "link").symlink_to(folder)
    same = folder / part("train")
    for again in (same, tmp_path / "link" / part("train")):
        with pytest.raises(InputError, match=rf"^data\.test: {again} is the training folder"):
            check_splits(splits(tmp_path, train=same, test=again), 1.0)


def test_an_integer_without_a_name_is_the_same_class_in_every_set(tmp_path):
    numbers = {"names": None, "labels": [10, 2, 9]}
    images = splits(
        tmp_path, train=saved(tmp_path / "a", **numbers), test=saved(tmp_path / "b", first=40, **numbers)
    )
    assert images["train"].classes == images["test"].classes == ("10", "2", "9")
    assert values(images["test"]) == [("10", 40), ("2", 41), ("9", 42)]
    shared = {"name": "--set", "seed": 0, "max_bad_fraction": 0.0, "known": images["train"].classes}
    given = open_labelled(str(tmp_path / "b"), open_storage(str(tmp_path / "storage")), **shared)
    assert values(given) == values(images["test"])


def test_rows_of_classes_that_are_not_named_are_not_unpacked(tmp_path):
    place = saved(tmp_path / "set", names=["red", "../other", "blue"])
    images = opened(place, tmp_path, classes=("blue", "red"))
    assert values(images) == [row for row in EXPECTED if row[0] != "green"]
    assert {path.name for path in Path(images.directory.path).iterdir()} == {"blue", "red"}
    with pytest.raises(InputError, match=r"set lacks 1 of the 2 class folders .*'teal'"):
        opened(place, tmp_path, classes=("red", "teal"))
    with pytest.raises(InputError, match=r"set has no rows of the classes"):
        opened(place, tmp_path, classes=("teal", "violet"))


def test_nothing_outside_the_given_folder_is_read(tmp_path):
    saved(tmp_path / "outside")
    arrow = tmp_path / "outside" / "data-00000-of-00001.arrow"
    for file in (
        "../outside/data-00000-of-00001.arrow",
        str(arrow),
        "..",
        "a/../../outside/data-00000-of-00001.arrow",
    ):
        (saved(tmp_path / "set") / "state.json").write_text(json.dumps({"_data_files": [{"filename": file}]}))
        with pytest.raises(
            InputError, match=r"^data\.train: .*state\.json names '.*', which is no name in that folder"
        ):
            opened(tmp_path / "set", tmp_path)
    assert not (tmp_path / "storage" / "unpacked").exists()


def test_an_unpacking_that_was_killed_is_done_again(tmp_path, monkeypatch):
    place, replace = saved(tmp_path / "set"), os.replace

    def killed(source, target):
        if "row-0000002" in target:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        patched.setattr(Path, "unlink", lambda *_, **__: None)  # who is killed tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            opened(place, tmp_path)
    (left,) = (tmp_path / "storage" / "unpacked").iterdir()
    assert any(".row-0000002" in name and name.endswith(".tmp") for name in tree(left))
    images = opened(place, tmp_path)
    assert values(images) == EXPECTED
    assert images.directory.path == str(left)


def test_an_unpacking_and_a_look_are_shown_where_they_take_long(tmp_path, monkeypatch, capsys):
    opened(saved(tmp_path / "set"), tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    opened(saved(tmp_path / "other"), tmp_path)
    shown = capsys.readouterr().err
    assert f"unpack: {len(EXPECTED)} images" in shown
    assert f"inspect: 100%|##########| {len(EXPECTED)}/{len(EXPECTED)}" in shown


def test_two_unpackings_at_once_leave_each_other_whole(tmp_path, monkeypatch):
    place, write, others = saved(tmp_path / "set"), Directory.write, []

    def interrupted(folder, name, data):
        monkeypatch.setattr(Directory, "write", write)
        if not others:
            others.append(None)
            others[0] = opened(place, tmp_path)  # begins later and ends earlier
        write(folder, name, data)
        assert values(others[0]) == EXPECTED

    monkeypatch.setattr(Directory, "write", interrupted)
    monkeypatch.setattr(unpacking, "WRITERS", 1)
    assert values(opened(place, tmp_path)) == values(others[0]) == EXPECTED


def out_of_range(path):
    """An Arrow stream in which an image ends a gigabyte beyond the end of the file."""
    table = pa.table({"image": [b"x" * 7777], "label": ["red"]})
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    # in the body, behind the header
    before, end, after = path.read_bytes().rpartition(np.int32(7777).tobytes())
    path.write_bytes(before + np.int32(2**30).tobytes() + after)
    assert end


def broken(tmp_path):
    """A place → what the line must name."""
    (tmp_path / "x.png").write_bytes(png(1))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    linked = datasets.Dataset.from_dict({"image": [str(tmp_path / "x.png")] * 2, "label": ["a", "b"]})
    linked.cast_column("image", datasets.Image()).to_parquet(tmp_path / "linked.parquet")
    made(labels=[0, 1, -1]).to_parquet(tmp_path / "unlabelled.parquet")
    made(labels=[0, 1, None]).to_parquet(tmp_path / "unknown.parquet")
    torn, lacking, ordered, far = (saved(tmp_path / name) for name in ("torn", "lacking", "ordered", "far"))
    arrow = "data-00000-of-00001.arrow"
    (torn / arrow).write_bytes((torn / arrow).read_bytes()[:-600])
    (lacking / arrow).unlink()
    state = json.loads((ordered / "state.json").read_text())
    (ordered / "state.json").write_text(
        json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]})
    )
    out_of_range(far / arrow)
    (saved(tmp_path / "text") / "state.json").write_text("{")
    (saved(tmp_path / "list") / "state.json").write_text("[]")
    (saved(tmp_path / "none") / "state.json").write_text("{}")
    shutil.rmtree(with_splits("saved", tmp_path / "dict", train=0) / "train")
    return {
        "torn.parquet": ["no readable Parquet", "torn.parquet", "write it anew"],
        "linked.parquet": ["row 0 holds no image bytes, but names a file", "embedded"],
        "unlabelled.parquet": ["row 2 has label -1", "a split that has labels"],
        "unknown.parquet": ["row 2 has no label", "a split that has labels"],
        "torn": ["no readable Arrow stream", arrow, "write it anew"],
        "far": ["no readable Arrow stream", arrow, "write it anew"],
        "lacking": ["lacks the files", arrow, "copy all of it"],
        "ordered": ["order of its rows apart", "save it anew"],
        "text": ["text/state.json names no files", "save the set anew"],
        "list": ["list/state.json names no files", "save the set anew"],
        "none": ["none/state.json names no files", "save the set anew"],
        "dict": ["dict holds the splits none, and not 'train'"],
    }


def test_what_cant_be_read_is_refused_in_one_line_with_the_remedy(tmp_path):
    for name, words in broken(tmp_path).items():
        with pytest.raises(InputError) as error:
            opened(tmp_path / name, tmp_path)
        line = str(error.value)
        assert line.startswith("data.train: ")
        assert "\n" not in line
        assert str(tmp_path / name) in line
        assert all(word in line for word in words), line


def test_rows_that_are_no_images_count_as_bad_ones_by_the_place_that_was_given(tmp_path):
    table = pa.table({"image": [png(1), b"junk", png(2)], "label": ["a", "a", "b"]})
    pq.write_table(table, tmp_path / "set.parquet")
    assert list(opened(tmp_path / "set.parquet", tmp_path, max_bad_fraction=0.5).bad) == ["a/row-0000001"]
    with pytest.raises(InputError, match=r"1 of 3 files in .*/set\.parquet are no images"):
        opened(tmp_path / "set.parquet", tmp_path)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_bucket_holds_sets_and_what_is_unpacked_as_a_disk_does(form, store, tmp_path):
    local = with_splits(form, tmp_path / "local", train=0, test=40)
    bucket = f"s3://{BUCKET}/{form}"
    for name, data in tree(local).items():
        open_directory(bucket).write(name, data)
    for storage in (str(tmp_path / "storage"), f"{bucket}-storage"):
        words = [f"data.train={bucket}", f"data.test={bucket}", "evaluate.protocol=smoke"]
        config = load_config("digits", parse_overrides(words))
        images = open_splits(image_places(config), config.data, 0, open_storage(storage))
        assert check_splits(images, 0.0) == []
        assert values(images["train"]) == EXPECTED
        assert images["test"].fingerprint == opened(local, tmp_path, "data.test").fingerprint


def test_class_folders_stay_class_folders(tmp_path):
    for value, name in enumerate(["blue/a", "data/b", "red/c"]):  # a class may be called data
        open_directory(str(tmp_path / "set")).write(f"{name}.png", png(value))
    made().to_parquet(tmp_path / "set" / "table.parquet")
    images = opened(tmp_path / "set", tmp_path)
    assert images.paths == ("blue/a.png", "data/b.png", "red/c.png")
    assert images.place == str(tmp_path / "set")
    assert not (tmp_path / "storage" / "unpacked").exists()
