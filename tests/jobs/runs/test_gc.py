"""Garbage collection deletes artefacts that no record names, and nothing else."""

import os
import time

import pytest

from ims3_ray.jobs.runs import gc
from ims3_ray.runs import records
from ims3_ray.storage.artifacts import Directory, complete, open_storage, read_manifest

A, B, C = (letter * 12 for letter in "abc")
LATER = time.time() + gc.RECENT_S + 3600


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "runs"))


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """The storage's clock is an hour ahead: nothing is recent."""
    monkeypatch.setattr(gc, "store_time", lambda _: LATER)


def make(storage, place, size=100, is_complete=True):
    directory = storage / place
    directory.write("part-00000.parquet", b"x" * size)
    if is_complete:
        complete(directory, {})


def record(storage, key, *places):
    records.write(storage, f"runs/digits-{key}/run.json", places, key=key, state=records.FINISHED)


def unneeded(storage):
    return {entry.place: entry.why for entry in gc.survey(storage).unneeded}


def test_only_artefacts_that_a_record_names_are_needed(storage):
    for noun in gc.NOUNS:
        make(storage, f"{noun}/{A}")
        make(storage, f"{noun}/{B}")
    make(storage, f"candidates/{C}", is_complete=False)
    record(storage, "k", *(f"{noun}/{A}" for noun in gc.NOUNS))
    half_written = {place: "half-written" in why for place, why in unneeded(storage).items()}
    assert half_written == {f"{noun}/{B}": False for noun in gc.NOUNS} | {f"candidates/{C}": True}


def test_all_artefacts_without_a_record_are_kept_while_one_is_recent(storage):
    make(storage, f"latents/{A}")
    make(storage, f"adapter/{B}", is_complete=False)
    os.utime(f"{storage.path}/adapter/{B}/part-00000.parquet", (LATER, LATER))
    found = gc.survey(storage)
    assert found.unneeded == []
    assert any(f"adapter/{B}" in note and "in the making" in note for note in found.notes)


def test_checkpoints_are_kept_until_their_adapter_is_complete(storage):
    checkpoints = f"checkpoints/finetune-{A}"
    make(storage, f"{checkpoints}/step_0000003", is_complete=False)
    assert unneeded(storage) == {}
    record(storage, "k", f"adapter/{A}")
    assert unneeded(storage) == {}
    make(storage, f"adapter/{A}")
    assert set(unneeded(storage)) == {checkpoints}


def test_caches_records_and_files_of_other_origin_stay(storage):
    ours = (
        f"index/{A}.json index/.{A}.json.0f.tmp digits/train/0/1.png digits/train.complete unpacked/{A}/a/0 "
        f"unpacked/.{A}.complete.0f.tmp embedded/{B}/part pretrain/vae/{A}/x checkpoints/pretrain-vae-{A}/x "
        f"pretrain/latents/{A}/x sweeps/k/state mlflow.db mlartifacts/1/x"
    ).split()
    strange = (
        f"notes.txt photos/1.png latents/mine/1.png latents/{C} candidates/{A}x/1 index/mine.json "
        f"checkpoints/mine/1 old/latents/{A}/1"
    ).split()
    for name in (*ours, *strange):
        storage.write(name, b"x")
    (storage / "empty").filesystem.create_dir(f"{storage.path}/empty")
    found = gc.survey(storage)
    assert found.artifacts == []
    shallow = {"/".join(name.split("/")[:2]) for name in strange} | {"empty"}
    assert {entry.place for entry in found.not_ours} == shallow
    before = set(storage.files())
    everything = [e.place for e in (*found.not_ours, *found.caches, *found.kept)]
    assert gc.delete(storage, everything) == []
    assert set(storage.files()) == before


def test_delete_surveys_again_and_deletes_only_confirmed_places(storage):
    make(storage, f"latents/{A}")
    make(storage, f"latents/{B}")
    places = list(unneeded(storage))
    record(storage, "started-meanwhile", f"latents/{A}")
    make(storage, f"latents/{C}")
    assert [entry.place for entry in gc.delete(storage, places)] == [f"latents/{B}"]
    names = ("manifest.json", "part-00000.parquet")
    assert set((storage / "latents").files()) == {f"{key}/{name}" for key in (A, C) for name in names}


def test_a_half_deleted_artefact_is_not_complete(storage, monkeypatch):
    make(storage, f"latents/{A}")
    delete = Directory.delete

    def stop(directory):
        if directory.name == A:
            raise KeyboardInterrupt
        delete(directory)

    monkeypatch.setattr(Directory, "delete", stop)
    with pytest.raises(KeyboardInterrupt):
        gc.delete(storage, [f"latents/{A}"])
    assert read_manifest(storage / f"latents/{A}") is None
    assert (storage / f"latents/{A}").files()


def test_only_the_link_to_an_artefact_is_deleted(tmp_path, storage):
    make(open_storage(str(tmp_path / "elsewhere")), f"latents/{B}")
    target = tmp_path / "elsewhere" / "latents" / B
    (tmp_path / "runs" / "latents").mkdir()
    os.symlink(target, tmp_path / "runs" / "latents" / B)
    gc.delete(storage, unneeded(storage))
    assert not os.path.lexists(f"{storage.path}/latents/{B}")
    assert {path.name for path in target.iterdir()} == {"manifest.json", "part-00000.parquet"}
