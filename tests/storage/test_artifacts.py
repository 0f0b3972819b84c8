"""Artefacts: tables with checked columns, manifests, atomic files, URIs."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from pyarrow import fs

from ims3_ray.errors import InputError
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import (
    MANIFEST,
    Directory,
    complete,
    fingerprint,
    open_directory,
    open_storage,
    read_manifest,
)
from ims3_ray.storage.integrity import verify
from ims3_ray.storage.rows import read_rows

PORT = "?endpoint_override=127.0.0.1:1"
AZURE = "abfss://c@account.dfs.core.windows.net/p"


def rows(count, seed=0):
    draws = np.random.default_rng(seed)
    moments = {name: draws.normal(size=(count, 4, 2, 2)).astype(np.float16) for name in ("mean", "logvar")}
    ids = np.array([f"id{i}" for i in range(count)], dtype=object)
    return {"image_id": ids, "label": np.arange(count)} | moments


@pytest.fixture
def directory(tmp_path):
    return open_directory(str(tmp_path / "x"))


@pytest.fixture
def two_files(directory):
    directory.write("a", b"one")
    directory.write("b", b"two")
    return directory


def test_a_table_survives_a_round_trip(directory):
    directory.write("part-00001.parquet", schemas.to_parquet(rows(2, 1), schemas.LATENTS))
    directory.write("part-00000.parquet", schemas.to_parquet(rows(3), schemas.LATENTS))
    back = read_rows(directory, schemas.LATENTS)
    expected = schemas.concatenate([rows(3), rows(2, 1)])
    assert all(np.array_equal(back[name], expected[name]) for name in schemas.LATENTS)
    assert list(read_rows(directory, schemas.LATENTS, ["label"])) == ["label"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": rows(3)["mean"].astype(np.float32)},
        {"mean": rows(3)["mean"][:, 0]},
        {"label": np.arange(2)},
        {"more": np.arange(3)},
    ],
    ids=("type", "shape", "length", "column"),
)
def test_a_table_with_a_wrong_type_shape_or_column_is_not_written(wrong):
    with pytest.raises(AssertionError):
        schemas.to_parquet(rows(3) | wrong, schemas.LATENTS)


def test_an_artefact_is_complete_only_with_its_manifest_which_does_not_list_itself(two_files):
    assert read_manifest(two_files) is None
    for _ in range(2):
        complete(two_files, {"stage": "encode"})
        assert read_manifest(two_files)["files"] == {"a": 3, "b": 3}


@pytest.mark.slow
def test_a_reader_never_sees_half_a_file(directory):
    bodies = [bytes([i]) * 2_000_000 for i in range(4)]
    directory.write("file", bodies[0])
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(lambda: [directory.write("file", bodies[i % 4]) for i in range(40)])
        while not writing.done():
            assert directory.read("file") in bodies
    assert list(directory.files()) == ["file"]


def test_the_order_of_keys_does_not_change_a_fingerprint():
    value = fingerprint({"a": 1, "b": [2]})
    assert value == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    ("location", "below"),
    [
        (f"s3://b/p{PORT}&scheme=http", f"s3://b/p/x%20y/%3F{PORT}&scheme=http"),
        ("s3://b/p/?region=us-east-1", "s3://b/p/x%20y/%3F?region=us-east-1"),
        (f"gs://anonymous@b/p{PORT}", f"gs://anonymous@b/p/x%20y/%3F{PORT}"),
        (AZURE, f"{AZURE}/x%20y/%3F"),
        ("fsspec+memory://p", "fsspec+memory://p/x y/?"),
        ("fsspec+memory://", "fsspec+memory://x y/?"),
        ("file:///tmp/p", "/tmp/p/x y/?"),
    ],
)
def test_a_uri_opens_the_same_directory(location, below):
    directory = pickle.loads(pickle.dumps(open_directory(location) / "x y" / "?"))
    again = open_directory(directory.uri)
    assert directory.uri == again.uri == below
    assert directory.path == again.path
    assert directory.filesystem.equals(again.filesystem)


def test_a_directory_of_any_filesystem_has_a_uri():
    directory = Directory(fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory"))), "/made/by") / "hand"
    assert directory.uri == "fsspec+memory:///made/by/hand"
    assert open_directory(directory.uri).path == directory.path


def test_only_missing_checksums_are_computed(two_files, monkeypatch):
    monkeypatch.setattr(Directory, "sha256", lambda place, name: f"computed {name}")
    checksums = complete(two_files, {"checksums": {"a": "given"}})["checksums"]
    assert checksums == {"a": "given", "b": "computed b"}


def test_files_without_checksums_are_counted(two_files):
    complete(two_files, {})
    older = two_files.read_json(MANIFEST)
    del older["checksums"]
    two_files.write_json(MANIFEST, older)
    assert read_manifest(two_files) == older
    assert verify(two_files) == ({}, 2)


@pytest.mark.parametrize("content", [b"", b"[]", b"garbage", b'{"format": "1"}', b"{}"])
def test_a_damaged_format_file_is_an_error(tmp_path, content):
    open_storage(str(tmp_path)).write("format.json", content)
    with pytest.raises(InputError, match=r"format\.json.*damaged"):
        open_storage(str(tmp_path))


def test_a_file_written_by_stream_is_whole_or_absent(directory):
    def fail(stream):
        stream.write(b"half")
        raise RuntimeError

    directory.write_stream("a/b", lambda stream: [stream.write(b"12"), stream.write(b"34")])
    with pytest.raises(RuntimeError):
        directory.write_stream("a/b", fail)
    assert directory.read("a/b") == b"1234"
    assert list(directory.files()) == ["a/b"]
