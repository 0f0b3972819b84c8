"""Damaged artefacts: every kind of damage is found, and no part is kept without a matching checksum."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from loopback_store import BUCKET

from ims3_ray.errors import InputError
from ims3_ray.stages.select.candidates import open_features
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import (
    MANIFEST,
    PREVIOUS,
    DamagedError,
    complete,
    open_directory,
    read_manifest,
)
from ims3_ray.storage.checksums import BLANK, KEY, embed_checksum, embedded_checksum_holds
from ims3_ray.storage.integrity import intact_parts, read_or_reopen, reopen, verify
from ims3_ray.storage.rows import part_names, read_part, read_rows

PARTS = [f"part-{place:05d}.parquet" for place in range(3)]
FIRST, SECOND, THIRD = PARTS


def rows(count, seed=0):
    draws = np.random.default_rng(seed)
    values = draws.normal(size=(count, 4)).astype(np.float32)
    ids = np.array([f"id{i}" for i in range(count)], object)
    return {"image_id": ids, "label": np.arange(count), "feature": values}


def part(name, seed):
    return embed_checksum(schemas.to_parquet(rows(2, seed), schemas.FEATURES, {KEY: BLANK}), name)


@pytest.fixture(params=["disk", "bucket"])
def killed(request, tmp_path):
    """An artefact whose stage was killed before it wrote the manifest."""
    if request.param == "bucket":
        request.getfixturevalue("store")
        place = f"s3://{BUCKET}/{tmp_path.name}/latents/aaaaaaaaaaaa"
    else:
        place = str(tmp_path / "latents" / "aaaaaaaaaaaa")
    directory = open_directory(place)
    for seed, name in enumerate(PARTS):
        directory.write(name, part(name, seed))
    return directory


@pytest.fixture
def directory(tmp_path):
    return open_directory(str(tmp_path))


@pytest.fixture
def finished(killed):
    complete(killed, {"stage": "embed", "rows": 6})
    return killed


def flip(directory, name, place=40):
    data = bytearray(directory.read(name))
    data[place] ^= 1
    directory.write(name, bytes(data))


def truncate(directory, name):
    directory.write(name, directory.read(name)[:-9])


def delete(directory, name):
    (directory / name).delete()


def swap(directory, name, other=THIRD):
    data = directory.read(name)
    directory.write(name, directory.read(other))
    directory.write(other, data)


def flip_and_delete(directory, name):
    flip(directory, name)
    delete(directory, THIRD)


DAMAGE = {
    flip: {SECOND},
    truncate: {SECOND},
    delete: {SECOND},
    swap: {SECOND, THIRD},
    flip_and_delete: {SECOND, THIRD},
}


every_damage = pytest.mark.parametrize("damage", DAMAGE)


def intact(directory):
    return [name for name, _ in intact_parts(directory, PARTS)]


@every_damage
def test_verify_finds_every_damaged_file(finished, damage):
    assert verify(finished) == ({}, 0)
    damage(finished, SECOND)
    assert set(verify(finished)[0]) == DAMAGE[damage]


@every_damage
def test_damaged_parts_of_a_killed_stage_are_found_and_not_kept(killed, damage):
    damage(killed, SECOND)
    assert set(verify(killed)[0]) == DAMAGE[damage] & set(killed.files())
    assert intact(killed) == sorted(set(PARTS) - DAMAGE[damage])


@every_damage
def test_a_reopened_artefact_keeps_no_damaged_part(finished, damage):
    before = {name: finished.read(name) for name in PARTS}
    damage(finished, SECOND)
    reopen(finished, {"part-00009.parquet"})
    assert read_manifest(finished) is None
    assert set(intact(finished)) == set(PARTS) - DAMAGE[damage]
    for name in DAMAGE[damage]:
        finished.write(name, before[name])
    complete(finished, {"stage": "embed", "rows": 6})
    assert PREVIOUS not in finished.files()
    assert set(read_manifest(finished)["files"]) == set(PARTS)
    assert verify(finished) == ({}, 0)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b'{"format": 1}', b"null", b"\xff\xfe"])
def test_parts_are_kept_by_their_own_checksums_if_the_manifest_is_damaged(finished, content):
    flip(finished, SECOND)
    if content is None:
        delete(finished, MANIFEST)
    else:
        finished.write(MANIFEST, content)
        assert set(verify(finished)[0]) == {MANIFEST, SECOND}
        with pytest.raises(DamagedError):
            read_manifest(finished)
    assert read_or_reopen(finished) is None
    assert PREVIOUS not in finished.files()
    assert intact(finished) == [FIRST, THIRD]


def test_a_part_of_another_artefact_is_not_kept(finished):
    finished.write(SECOND, part(SECOND, 9))  # whole, with its own checksum and name
    delete(finished, THIRD)
    assert read_or_reopen(finished) is None
    assert intact(finished) == [FIRST]


def test_a_part_without_a_checksum_is_not_kept(killed):
    killed.write(SECOND, schemas.to_parquet(rows(2, 1), schemas.FEATURES))
    assert intact(killed) == [FIRST, THIRD]
    assert verify(killed) == ({}, 1)


@pytest.mark.parametrize("damage", [truncate, delete])
def test_readers_raise_for_a_lost_or_truncated_part(finished, damage):
    damage(finished, SECOND)
    for read in (read_manifest, part_names, lambda place: read_rows(place, schemas.FEATURES)):
        with pytest.raises(DamagedError) as error:
            read(finished)
        assert set(error.value.files) == {SECOND}


def test_a_flipped_bit_never_gives_other_values(directory):
    whole = rows(2)
    data = schemas.to_parquet(whole, schemas.FEATURES)
    for place in range(0, len(data), 5):
        directory.write(FIRST, data)
        flip(directory, FIRST, place)
        try:
            read = read_part(directory, FIRST, schemas.FEATURES)
            assert all(np.array_equal(read[name], whole[name]) for name in whole)
        except InputError:
            pass
        try:
            table = open_features(directory, "--real", ())
            features = [values for _, values in table.with_index(table.index()).read([0, 1])]
            assert np.array_equal(np.concatenate(features), whole["feature"])
        except (InputError, ValueError):
            pass


@pytest.mark.parametrize("content", [b"", b"garbage", b"PAR1" + bytes(60) + b"PAR1"])
def test_a_part_that_is_no_parquet_is_an_error_that_names_the_file(directory, content):
    directory.write(FIRST, content)
    with pytest.raises(InputError, match=FIRST):
        read_part(directory, FIRST, schemas.FEATURES)


def test_a_manifest_of_a_newer_version_is_an_error_and_stays(finished):
    finished.write_json(MANIFEST, finished.read_json(MANIFEST) | {"format": 99})
    before = {name: finished.read(name) for name in finished.files()}
    for read in (read_manifest, read_or_reopen, verify):
        with pytest.raises(InputError, match="99"):
            read(finished)
    assert {name: finished.read(name) for name in finished.files()} == before


@pytest.mark.parametrize(
    "write",
    [
        lambda: schemas.to_parquet(rows(2), schemas.FEATURES, {KEY: BLANK}),
        lambda: safetensors.torch.save({"weight": torch.arange(64.0)}, metadata={KEY: BLANK}),
        lambda: json.dumps({KEY: BLANK, "rest": "x" * 64}).encode(),
    ],
    ids=["parquet", "safetensors", "json"],
)
def test_an_embedded_checksum_detects_any_flipped_bit_and_another_name(write):
    data = embed_checksum(write(), "a")
    assert embedded_checksum_holds(data, "a") is True
    assert embedded_checksum_holds(data, "b") is False
    for place in range(0, len(data), 7):
        broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert not embedded_checksum_holds(broken, "a"), place
