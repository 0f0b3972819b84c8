"""Data sets in rows give the same images as class folders."""

import json
import os
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flat import labelled, opened, png, run_splits, values
from loopback_store import BUCKET
from tiny import tree, write_images

from ims3_ray.data import unpacking
from ims3_ray.errors import InputError
from ims3_ray.pipeline.inputs import check_splits
from ims3_ray.storage.artifacts import Directory, open_directory

NAMES = ["red", "green", "blue"]  # not sorted: a label is no place among the sorted names
KNOWN = sorted(NAMES)
LABELS = [0, 2, 1, 2, 0, 1]
WORDS = [NAMES[label] for label in LABELS]
IMAGES = [png(value) for value in range(6)]
STRUCTS = [{"bytes": data, "path": None} for data in IMAGES]
EXPECTED = [("blue", 1), ("blue", 3), ("green", 2), ("green", 5), ("red", 0), ("red", 4)]
ARROW = "data-00000-of-00001.arrow"

datasets.disable_progress_bars()
both_forms = pytest.mark.parametrize("form", ["saved", "parquet"])


def dataset(first=0, labels=LABELS, names=NAMES, columns=("image", "label")):
    """A data set of flat images with the values `first`, `first` + 1, …"""
    unnamed = datasets.Value("int64" if isinstance(labels[0], int) else "string")
    kinds = datasets.Image(), datasets.ClassLabel(names=names) if names else unnamed
    cells = [{"bytes": png(first + place), "path": None} for place in range(len(labels))]
    features = datasets.Features(dict(zip(columns, kinds, strict=True)))
    return datasets.Dataset.from_dict({columns[0]: cells, columns[1]: labels}, features=features)


def saved(place, **options):
    dataset(**options).save_to_disk(place)
    return place


def with_splits(form, folder, **firsts):
    """A folder with the splits, each with images of its own."""
    folder.mkdir()
    if form == "saved":
        datasets.DatasetDict({split: dataset(first) for split, first in firsts.items()}).save_to_disk(folder)
    for split, first in firsts.items() if form == "parquet" else ():
        for shard in range(2):
            dataset(first).shard(2, shard).to_parquet(folder / f"{split}-{shard:05d}-of-00002.parquet")
    return folder


def written(path, images, labels, column="label", names=None):
    """Parquet as pyarrow writes it, with an image and a class column."""
    table = pa.table({"image": images, column: labels})
    if names:
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_every_form_holds_the_same_images(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    dataset().to_parquet(tmp_path / "file.parquet")
    dataset().to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    dataset().save_to_disk(tmp_path / "shards", num_shards=3)
    saved(tmp_path / "cifar", columns=("img", "fine_label"))
    saved(tmp_path / "words", names=None, labels=WORDS)
    with_splits("saved", tmp_path / "dict", train=0)
    with_splits("parquet", tmp_path / "parquet", train=0)
    for name in ("file.parquet", "hub", "shards", "cifar", "words", "dict", "dict/train", "parquet"):
        images = opened(tmp_path / name, tmp_path)
        assert (values(images), images.place) == (EXPECTED, str(tmp_path / name))


@pytest.mark.parametrize(
    ("images", "labels", "options"),
    [
        (IMAGES, WORDS, {"column": "class"}),
        (STRUCTS, WORDS, {}),
        (STRUCTS, [KNOWN.index(word) for word in WORDS], {}),
        (IMAGES, LABELS, {"names": NAMES}),
        (IMAGES, pa.array(WORDS).dictionary_encode(), {}),
    ],
    ids=("words", "structs", "numbers", "names", "dictionary"),
)
def test_every_kind_of_parquet_can_be_scored(tmp_path, images, labels, options):
    path = written(tmp_path / "a.parquet", images, labels, **options)
    assert values(labelled(path, tmp_path, KNOWN)) == EXPECTED


def test_parquet_is_unpacked_once_and_again_after_a_change(tmp_path):
    path = written(tmp_path / "a.parquet", IMAGES, WORDS)
    first = opened(path, tmp_path)
    marker = tmp_path / "storage" / "unpacked" / f"{first.directory.name}.complete"
    before = marker.stat().st_mtime_ns
    assert opened(path, tmp_path).directory == first.directory
    assert marker.stat().st_mtime_ns == before
    written(path, [png(99), *IMAGES[1:]], WORDS)
    assert ("red", 99) in values(opened(path, tmp_path))


def test_a_lost_unpacked_image_is_an_error(tmp_path):
    path = written(tmp_path / "a.parquet", IMAGES, WORDS)
    images = opened(path, tmp_path)
    Path(images.directory.path, images.paths[0]).unlink()
    with pytest.raises(InputError, match=rf"{len(IMAGES) - 1} of {len(IMAGES)} unpacked images; remove"):
        opened(path, tmp_path)


def test_without_datasets_a_saved_set_is_an_error_and_folders_are_read(tmp_path, monkeypatch):
    place = saved(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'set .*pip install "ims3-ray\[hf\]"'):
        opened(place, tmp_path)
    assert len(opened(write_images(tmp_path / "folders", 2, seed=0), tmp_path)) == 6


@both_forms
def test_each_field_selects_its_own_split(form, tmp_path):
    firsts = {"train": 0, "validation": 40, "test": 80}
    three = with_splits(form, tmp_path / "three", **firsts)
    two = with_splits(form, tmp_path / "two", train=0, validation=40)
    for split, first in firsts.items():
        assert min(value for _, value in values(opened(three, tmp_path, f"data.{split}"))) == first
    assert values(opened(two, tmp_path, "data.test")) == values(opened(two, tmp_path, "data.validation"))


@pytest.mark.parametrize(
    "name", ["{}", "set-{}", "set_{}-00000-of-00001", "{}-00000-of-00001-0a1b", "a.{}_0"]
)
def test_any_word_of_a_files_name_may_name_its_split(name, tmp_path):
    for split, first in (("train", 0), ("test", 40)):
        (tmp_path / "set").mkdir(exist_ok=True)
        dataset(first).to_parquet(tmp_path / "set" / f"{name.format(split)}.parquet")
    train, test = (opened(tmp_path / "set", tmp_path, f"data.{split}") for split in ("train", "test"))
    assert max(value for _, value in values(train)) < min(value for _, value in values(test)) == 40


@both_forms
def test_a_missing_split_is_an_error_that_lists_the_others(form, tmp_path):
    folder = with_splits(form, tmp_path / "folder", train=0, extra=40)
    for field in ("data.test", "--set"):
        with pytest.raises(InputError, match=rf"^{field}: .*folder .*'extra', 'train'"):
            opened(folder, tmp_path, field)


@both_forms
def test_training_and_scored_images_may_be_splits_of_one_folder_but_not_the_same(form, tmp_path):
    def split_errors(train, test, max_overlap):
        return check_splits(
            run_splits(tmp_path / "storage", f"data.train={train}", f"data.test={test}"), max_overlap
        )

    folder = with_splits(form, tmp_path / "folder", train=0, test=40)
    train, test = (
        {"saved": split, "parquet": f"{split}-00000-of-00002.parquet"}[form] for split in ("train", "test")
    )
    for first, second in (("", ""), ("", test), (train, "")):
        assert split_errors(folder / first, folder / second, 0.0) == []
    (tmp_path / "link").symlink_to(folder)
    for again in (folder / train, tmp_path / "link" / train):
        with pytest.raises(InputError, match=rf"^data\.test: {again} is the training folder"):
            split_errors(folder / train, again, 1.0)


def test_an_unnamed_integer_is_the_same_class_in_every_set(tmp_path):
    for name, first in (("a", 0), ("b", 40)):
        saved(tmp_path / name, first=first, names=None, labels=[10, 2, 9])
    images = run_splits(tmp_path / "storage", f"data.train={tmp_path / 'a'}", f"data.test={tmp_path / 'b'}")
    assert images["train"].classes == images["test"].classes == ("10", "2", "9")
    scored = labelled(tmp_path / "b", tmp_path, images["train"].classes)
    assert values(images["test"]) == values(scored) == [("10", 40), ("2", 41), ("9", 42)]


def test_only_rows_of_named_classes_are_unpacked(tmp_path):
    place = saved(tmp_path / "set", names=["red", "../other", "blue"])
    images = opened(place, tmp_path, classes=("blue", "red"))
    assert values(images) == [row for row in EXPECTED if row[0] != "green"]
    assert {path.name for path in Path(images.directory.path).iterdir()} == {"blue", "red"}
    for classes in (("red", "teal"), ("teal", "violet")):
        with pytest.raises(InputError, match=r"set (lacks 1 of the 2.*'teal'|has no rows)"):
            opened(place, tmp_path, classes=classes)


def test_no_rows_outside_the_folder_are_read(tmp_path):
    outside = saved(tmp_path / "outside") / ARROW
    for file in (f"../outside/{ARROW}", str(outside), "..", f"a/../../outside/{ARROW}"):
        state = saved(tmp_path / "set") / "state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": file}]}))
        with pytest.raises(InputError, match=r"^data\.train: .*(is not in it|can't be read)"):
            opened(tmp_path / "set", tmp_path)
    assert not any((tmp_path / "storage").rglob("row-*"))


def test_a_killed_unpacking_is_repeated(tmp_path, monkeypatch):
    place, replace = saved(tmp_path / "set"), os.replace

    def killed(source, target):
        if "row-0000002" in target:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        patched.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process removes no temporary file
        with pytest.raises(KeyboardInterrupt):
            opened(place, tmp_path)
    (left,) = (tmp_path / "storage" / "unpacked").iterdir()
    assert any(".row-0000002" in name and name.endswith(".tmp") for name in tree(left))
    images = opened(place, tmp_path)
    assert (values(images), images.directory.path) == (EXPECTED, str(left))


def test_simultaneous_unpackings_do_not_damage_each_other(tmp_path, monkeypatch):
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
    before, end, after = path.read_bytes().rpartition(np.int32(7777).tobytes())  # in the body
    path.write_bytes(before + np.int32(2**30).tobytes() + after)
    assert end


def unreadable(tmp_path):
    """A place → words of its error."""
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    linked = datasets.Dataset.from_dict({"image": ["/etc/hostname"] * 2, "label": ["a", "b"]})
    linked.cast_column("image", datasets.Image()).to_parquet(tmp_path / "linked.parquet")
    written(tmp_path / "range.parquet", IMAGES, [0, 1, 2, 3, 0, 0], names=NAMES)
    written(tmp_path / "climb.parquet", IMAGES, ["red", "blue", "green", "../x", "red", "red"])
    written(tmp_path / "named.parquet", IMAGES, LABELS, names=["../x", "b", "c"])
    written(tmp_path / "floats.parquet", IMAGES, [float(label) for label in LABELS])
    written(tmp_path / "words.parquet", WORDS, WORDS)
    pq.write_table(pa.table({"picture": IMAGES, "label": WORDS}), tmp_path / "columns.parquet")
    dataset(labels=[0, 1, -1]).to_parquet(tmp_path / "unlabelled.parquet")
    dataset(labels=[0, 1, None]).to_parquet(tmp_path / "unknown.parquet")
    torn, lacking, far = (saved(tmp_path / name) for name in ("torn", "lacking", "far"))
    (torn / ARROW).write_bytes((torn / ARROW).read_bytes()[:-600])
    (lacking / ARROW).unlink()
    out_of_range(far / ARROW)
    for name, text in (("text", "{"), ("list", "[]"), ("none", "{}")):
        (saved(tmp_path / name) / "state.json").write_text(text)
    shutil.rmtree(with_splits("saved", tmp_path / "dict", train=0) / "train")
    return {
        "absent": ["does not exist"],
        "notes.txt": [".parquet"],
        "range.parquet": ["row 3", "label 3", "3 classes"],
        "climb.parquet": ["row 3", "'../x'"],
        "named.parquet": ["row 0", "'../x'"],
        "floats.parquet": ["label", "double"],
        "words.parquet": ["image", "string"],
        "columns.parquet": ["image", "picture"],
        "torn.parquet": ["no readable Parquet"],
        "linked.parquet": ["row 0", "names a file"],
        "unlabelled.parquet": ["row 2", "-1"],
        "unknown.parquet": ["row 2", "no label"],
        **{name: ["can't be read"] for name in ("torn", "far", "lacking", "text", "list", "none")},
        "dict": ["'train'"],
    }


def test_unreadable_sets_are_one_error_line_with_the_field_and_the_place(tmp_path):
    for name, words in unreadable(tmp_path).items():
        with pytest.raises(InputError) as error:
            opened(tmp_path / name, tmp_path)
        line = str(error.value)
        assert line.startswith("data.train: ")
        assert "\n" not in line
        assert [word for word in (str(tmp_path / name), *words) if word not in line] == [], line


@pytest.mark.parametrize(("classes", "wrong"), [(KNOWN[:2], "red"), ([*KNOWN, "teal"], "teal")])
def test_other_classes_than_the_scored_ones_are_an_error(tmp_path, classes, wrong):
    place = write_images(tmp_path / "set", 2, seed=0, classes=classes)
    with pytest.raises(InputError, match=rf"^--set: .*{place}.*'{wrong}'"):
        labelled(place, tmp_path, KNOWN)


def test_rows_without_a_readable_image_count_as_bad(tmp_path):
    path = written(tmp_path / "set.parquet", [png(1), b"junk", png(2)], ["a", "a", "b"])
    assert list(opened(path, tmp_path, limit=0.5).bad) == ["a/row-0000001"]
    with pytest.raises(InputError, match=rf"1 of 3 files in {path}"):
        opened(path, tmp_path)


@both_forms
def test_a_bucket_works_as_a_disk_does(form, store, tmp_path):
    local = with_splits(form, tmp_path / "local", train=0, test=40)
    bucket = f"s3://{BUCKET}/{form}"
    for name, data in tree(local).items():
        open_directory(bucket).write(name, data)
    words = [f"data.{split}={bucket}" for split in ("train", "test")]
    for storage in (tmp_path / "storage", f"{bucket}-storage"):
        images = run_splits(storage, *words)
        assert check_splits(images, 0.0) == []
        assert values(images["train"]) == EXPECTED
        assert images["test"].fingerprint == opened(local, tmp_path, "data.test").fingerprint


def test_class_folders_stay_class_folders(tmp_path):
    for value, name in enumerate(["blue/a", "data/b", "red/c"]):  # a class may be called data
        open_directory(str(tmp_path / "set")).write(f"{name}.png", png(value))
    dataset().to_parquet(tmp_path / "set" / "table.parquet")
    images = opened(tmp_path / "set", tmp_path)
    assert images.paths == ("blue/a.png", "data/b.png", "red/c.png")
    assert images.place == str(tmp_path / "set")
    assert not (tmp_path / "storage" / "unpacked").exists()
