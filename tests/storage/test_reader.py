"""Rows by their keys: in any order, each part read once, columns only on demand."""

import numpy as np
import pytest

from ims3_ray.errors import InputError
from ims3_ray.storage import rows
from ims3_ray.storage.artifacts import DamagedError, complete, open_directory
from ims3_ray.storage.rows import INDEX, pack_keys, pack_part_keys, read_index, read_together, write_index
from ims3_ray.storage.schemas import FEATURES, to_parquet


@pytest.fixture
def features(tmp_path):
    """Three parts of 4 rows, classes mixed, and one whose images were all unreadable."""
    draws, directory = np.random.default_rng(0), open_directory(str(tmp_path))
    for part in range(3):
        columns = {
            "image_id": np.array([f"{part}-{row}" for row in range(4)], object),
            "label": draws.integers(0, 3, 4),
            "feature": draws.normal(size=(4, 5)).astype(np.float32),
        }
        directory.write(f"part-{part:05d}.parquet", to_parquet(columns, FEATURES))
    empty = {name: values[:0] for name, values in columns.items()}
    directory.write("part-00003.parquet", to_parquet(empty, FEATURES))
    complete(directory, {"rows": 12})
    return directory


def test_rows_are_read_in_the_order_of_the_index(features):
    whole = rows.read_rows(features, FEATURES)
    found = read_index(features, FEATURES, ["label"])
    assert np.array_equal(found.keys["label"], whole["label"])
    places = np.array([11, 0, 5, 4, 11, 7])
    some = found.take(places)
    assert np.array_equal(some.read("feature"), whole["feature"][places])
    assert some.read("image_id").tolist() == whole["image_id"][places].tolist()
    assert np.array_equal(some.take(np.array([2, 1])).read("feature"), whole["feature"][[5, 0]])


@pytest.fixture
def parts_read(monkeypatch):
    """Names of the parts in the order in which they are read from now on."""
    names, plain = [], rows.read_part
    monkeypatch.setattr(
        rows, "read_part", lambda place, name, *rest: names.append(name) or plain(place, name, *rest)
    )
    return names


def test_only_parts_with_needed_rows_are_read_each_once(features, parts_read):
    index = read_index(features, FEATURES, ["label"])
    parts_read.clear()
    some = index.take(np.array([9, 1, 8, 0]))
    assert parts_read == []
    some.read("feature")
    assert parts_read == ["part-00000.parquet", "part-00002.parquet"]


def test_several_indexes_read_each_part_once_together(features, parts_read):
    index = read_index(features, FEATURES, ["label"])
    whole = index.read()
    parts_read.clear()
    first, second = read_together([index.take(np.array([11, 2])), index.take(np.array([5, 0, 2]))])
    assert np.array_equal(first, whole[[11, 2]])
    assert np.array_equal(second, whole[[5, 0, 2]])
    assert parts_read == sorted(features.files())[1:-1]  # without the manifest and the empty part


@pytest.fixture
def indexed(features):
    """The same with an index file."""
    (features / "manifest.json").delete()
    write_index(features, {name: pack_part_keys(features.read(name), FEATURES) for name in features.files()})
    complete(features, {"rows": 12})
    return features


def test_an_index_file_equals_the_keys_of_the_parts_and_replaces_reading_them(indexed, monkeypatch):
    whole = rows.read_rows(indexed, FEATURES)
    monkeypatch.setattr(rows, "read_part", lambda *_: pytest.fail("a part was read"))
    found = read_index(indexed, FEATURES, ["label", "image_id"])
    assert all(np.array_equal(found.keys[name], whole[name]) for name in ("label", "image_id"))
    monkeypatch.undo()
    assert np.array_equal(found.read("feature"), whole["feature"])


def test_keys_of_columns_equal_keys_of_a_part(features):
    name = "part-00001.parquet"
    columns = rows.read_part(features, name, FEATURES)
    assert pack_keys(columns, FEATURES) == pack_part_keys(features.read(name), FEATURES)


@pytest.mark.parametrize(("which", "file"), [("features", "part-00001.parquet"), ("indexed", INDEX)])
def test_a_lost_part_or_index_is_damage(request, which, file):
    directory = request.getfixturevalue(which)
    (directory / file).delete()
    with pytest.raises(DamagedError, match=file):
        read_index(directory, FEATURES, ["label"])


def test_a_flipped_bit_of_an_index_is_an_error(indexed):
    data = bytearray(indexed.read(INDEX))
    data[len(data) // 2] ^= 1
    indexed.write(INDEX, bytes(data))
    with pytest.raises(InputError, match=INDEX):
        read_index(indexed, FEATURES, ["label"])
