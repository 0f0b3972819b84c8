"""Anybody's image set: class folders, Parquet of several makes, and what is refused."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import write_images

from ims3_ray.data.images import open_labelled
from ims3_ray.data.pixels import decode
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import open_storage

KNOWN = ("blue", "green", "red")
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(value):
    sink = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def written(path, images, labels, column="label", names=None):
    """Parquet with an image column (struct where its cells are dicts) and a class column."""
    table = pa.table(
        {"image": pa.array(images, STRUCT if isinstance(images[0], dict) else None), column: labels}
    )
    if names:
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def opened(location, tmp_path, known=KNOWN):
    storage = open_storage(str(tmp_path / "storage"))
    return open_labelled(str(location), storage, name="--set", seed=0, max_bad_fraction=0.0, known=known)


def values(images):
    """{(class, first pixel's value)} of a set of flat images."""
    shown = [np.asarray(decode(images.directory.read(path)))[0, 0, 0] for path in images.paths]
    return sorted((images.classes[c], int(v)) for c, v in zip(images.labels, shown, strict=True))


EXPECTED = [("blue", 10), ("blue", 40), ("green", 20), ("red", 30)]
IMAGES = [png(v) for v in (30, 10, 20, 40)]
NAMED = ["red", "blue", "green", "blue"]


def test_every_make_of_parquet_gives_the_same_set(tmp_path):
    structs = [{"bytes": data, "path": None} for data in IMAGES]
    places = [KNOWN.index(n) for n in NAMED]
    shuffled = ["red", "green", "blue"]
    makes = [
        written(tmp_path / "a.parquet", IMAGES, NAMED, "class"),
        written(tmp_path / "b.parquet", structs, NAMED),
        written(tmp_path / "c.parquet", structs, places),
        written(tmp_path / "d.parquet", IMAGES, [shuffled.index(n) for n in NAMED], names=shuffled),
        written(tmp_path / "e.parquet", IMAGES, pa.array(NAMED).dictionary_encode()),
        written(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", structs, NAMED).parents[1],
    ]
    for make in makes:
        assert values(opened(make, tmp_path)) == EXPECTED, make


def test_what_hugging_face_datasets_writes_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green", "blue"])}
    )
    rows = {"image": [Image.open(io.BytesIO(data)) for data in IMAGES], "label": NAMED}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "hf.parquet"))
    assert values(opened(tmp_path / "hf.parquet", tmp_path)) == EXPECTED


def test_parquet_is_unpacked_once_and_anew_when_it_changes(tmp_path):
    path = written(tmp_path / "a.parquet", IMAGES, NAMED)
    first = opened(path, tmp_path)
    marker = tmp_path / "storage" / "unpacked" / f"{first.directory.name}.complete"
    before = marker.stat().st_mtime_ns
    assert opened(path, tmp_path).directory == first.directory
    assert marker.stat().st_mtime_ns == before
    written(path, [png(v) for v in (31, 10, 20, 40)], NAMED)
    assert ("red", 31) in values(opened(path, tmp_path))


def test_class_folders_are_read_as_they_are(tmp_path):
    write_images(tmp_path / "set", 3, seed=0)
    assert opened(tmp_path / "set", tmp_path).counts().tolist() == [3, 3, 3]


def bad(tmp_path):
    """A set → what the line must name."""
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    two = tmp_path / "two"
    for split in ("train", "test"):
        written(two / f"{split}-00000-of-00001.parquet", IMAGES, NAMED)
    table = pa.table({"picture": IMAGES, "label": NAMED})
    pq.write_table(table, tmp_path / "columns.parquet")
    write_images(tmp_path / "fewer", 2, seed=0, classes=("blue", "green"))
    write_images(tmp_path / "more", 2, seed=0, classes=("blue", "green", "red", "teal"))
    linked = [{"bytes": None, "path": "/etc/hostname"}, *({"bytes": d, "path": None} for d in IMAGES[1:])]
    return [
        (tmp_path / "absent", ["absent", "does not exist"]),
        (tmp_path / "notes.txt", ["notes.txt", ".parquet"]),
        (tmp_path / "torn.parquet", ["torn.parquet", "no readable Parquet"]),
        (two, ["'test', 'train'", "name one file"]),
        (tmp_path / "columns.parquet", ["no column image", "picture"]),
        (tmp_path / "fewer", ["no image of 1 classes", "'red'"]),
        (tmp_path / "more", ["'teal'", "known"]),
        (written(tmp_path / "range.parquet", IMAGES, [0, 1, 2, 3]), ["row 3", "label 3"]),
        (written(tmp_path / "unlabelled.parquet", IMAGES, [0, 1, 2, -1]), ["row 3", "label -1"]),
        (written(tmp_path / "climb.parquet", IMAGES, ["red", "blue", "green", "../x"]), ["row 3", "'../x'"]),
        (
            written(tmp_path / "named.parquet", IMAGES, [0, 1, 2, 0], names=["../x", "b", "c"]),
            ["row 0", "'../x'"],
        ),
        (written(tmp_path / "linked.parquet", linked, NAMED), ["row 0", "no image bytes"]),
        (written(tmp_path / "floats.parquet", IMAGES, [0.0, 1.0, 2.0, 0.0]), ["column label", "double"]),
        (written(tmp_path / "text.parquet", ["x"] * 4, NAMED), ["column image", "string"]),
        (
            written(tmp_path / "junk.parquet", [b"junk", *IMAGES], ["red", *NAMED]),
            ["red/row-0000000", "no image"],
        ),
    ]


def test_what_is_no_labelled_image_set_is_refused_in_one_line(tmp_path):
    for location, named in bad(tmp_path):
        with pytest.raises(InputError) as error:
            opened(location, tmp_path)
        line = str(error.value)
        assert line.startswith("--set: ")
        assert "\n" not in line
        for word in named:
            assert word in line, (location, line)
