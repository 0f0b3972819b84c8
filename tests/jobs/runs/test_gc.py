"""What lies in a storage: what no run needs is found, and nothing else is ever deleted."""

import os
import time

import fsspec
import pytest
from pyarrow import fs

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
    """The hour after: nothing is recent."""
    monkeypatch.setattr(gc, "store_time", lambda _: LATER)


def make(storage, place, size=100, is_complete=True):
    directory = storage / place
    directory.write("part-00000.parquet", b"x" * size)
    if is_complete:
        complete(directory, {})


def record(storage, key, *places):
    records.write(storage, f"runs/digits-{key}/run.json", places, key=key, state=records.FINISHED)


def unneeded(storage, deleted=()):
    found = gc.survey(storage, dict.fromkeys(deleted, 0.0))
    return {entry.place: entry.why for entry in found.unneeded}


def test_what_a_record_names_is_needed_and_the_rest_is_not(storage):
    for noun in gc.NOUNS:
        make(storage, f"{noun}/{A}")
        make(storage, f"{noun}/{B}")
    make(storage, f"candidates/{C}", is_complete=False)
    record(storage, "k", *(f"{noun}/{A}" for noun in gc.NOUNS))
    found = unneeded(storage)
    assert set(found) == {f"{noun}/{B}" for noun in gc.NOUNS} | {f"candidates/{C}"}
    assert "half-written" in found[f"candidates/{C}"]
    assert "half-written" not in found[f"latents/{B}"]


def test_what_two_runs_need_stays_until_both_are_deleted(storage):
    make(storage, f"latents/{A}")
    record(storage, "k1", f"latents/{A}")
    record(storage, "k2", f"latents/{A}")
    assert unneeded(storage, ["k1"]) == {}
    assert unneeded(storage, ["k1", "k2"]) == {f"latents/{A}": "its runs were deleted in MLflow"}


def test_what_no_record_names_is_kept_while_some_of_it_is_recent(storage):
    make(storage, f"latents/{A}")
    make(storage, f"adapter/{B}", is_complete=False)
    os.utime(f"{storage.path}/adapter/{B}/part-00000.parquet", (LATER, LATER))
    found = gc.survey(storage, {})
    assert found.unneeded == []
    assert any(f"adapter/{B}" in note and "in the making" in note for note in found.notes)


def test_checkpoints_serve_until_their_adapter_is_complete(storage):
    checkpoints = f"checkpoints/finetune-{A}"
    make(storage, f"{checkpoints}/step_0000003", is_complete=False)
    assert unneeded(storage) == {}
    record(storage, "k", f"adapter/{A}")
    assert unneeded(storage) == {}
    assert set(unneeded(storage, ["k"])) == {checkpoints}
    make(storage, f"adapter/{A}")
    assert unneeded(storage) == {checkpoints: "its adapter is complete"}


def test_caches_records_and_strangers_stay(storage):
    ours = (
        f"index/{A}.json index/.{A}.json.0f.tmp digits/train/0/1.png digits/train.complete unpacked/{A}/a/0 "
        f"unpacked/.{A}.complete.0f.tmp embedded/{B}/part pretrain/vae/{A}/x checkpoints/pretrain-vae-{A}/x "
        "sweeps/k/state mlflow.db mlartifacts/1/x ablations/k/ablation.md"
    ).split()
    strange = (
        f"notes.txt photos/1.png latents/mine/1.png latents/{C} candidates/{A}x/1 index/mine.json "
        f"checkpoints/mine/1 old/latents/{A}/1"
    ).split()
    for name in (*ours, *strange):
        storage.write(name, b"x")
    (storage / "empty").filesystem.create_dir(f"{storage.path}/empty")
    found = gc.survey(storage, {})
    assert found.artifacts == []
    shallow = {"/".join(name.split("/")[:2]) for name in strange} | {"empty"}
    assert {entry.place for entry in found.not_ours} == shallow
    before = set(storage.files())
    everything = [e.place for e in (*found.not_ours, *found.caches, *found.kept)]
    assert gc.delete(storage, everything, {}) == []
    assert set(storage.files()) == before


def test_delete_looks_again_and_takes_no_more_than_was_agreed_on(storage):
    make(storage, f"latents/{A}")
    make(storage, f"latents/{B}")
    places = list(unneeded(storage))
    record(storage, "started-meanwhile", f"latents/{A}")
    make(storage, f"latents/{C}")
    gone = gc.delete(storage, places, {})
    assert [entry.place for entry in gone] == [f"latents/{B}"]
    assert read_manifest(storage / f"latents/{A}")
    assert read_manifest(storage / f"latents/{C}")
    assert not (storage / f"latents/{B}").files()


def test_an_artefact_that_is_half_deleted_is_not_complete(storage, monkeypatch):
    make(storage, f"latents/{A}")

    delete = Directory.delete

    def stop(directory):
        if directory.name == A:
            raise KeyboardInterrupt
        delete(directory)

    monkeypatch.setattr(Directory, "delete", stop)
    with pytest.raises(KeyboardInterrupt):
        gc.delete(storage, [f"latents/{A}"], {})
    assert read_manifest(storage / f"latents/{A}") is None
    assert (storage / f"latents/{A}").files()


def test_folders_of_runs_without_a_record_are_told(storage):
    storage.write("ablations/digits-k/ablation.json", b"{}")
    record(storage, "k", f"latents/{A}")
    (note,) = gc.survey(storage, {}).notes
    assert note.startswith("ablations/digits-k has no record")


def test_links_end_and_what_they_lead_to_is_never_deleted(tmp_path, storage):
    make(storage, f"latents/{A}")
    make(open_storage(str(tmp_path / "elsewhere")), f"latents/{B}")
    there = tmp_path / "elsewhere" / "latents" / B
    links = {
        f"latents/{A}/up": "../..",
        f"latents/{C}": "..",
        "root": ".",
        "gone": "nowhere",
        f"candidates/{A}": f"itself/{A}",
        f"latents/{B}": there,
    }
    for place, target in links.items():
        (tmp_path / "runs" / place).parent.mkdir(exist_ok=True)
        os.symlink(target, tmp_path / "runs" / place)
    found = gc.survey(storage, {})
    assert {entry.place for entry in found.unneeded} == {f"latents/{A}", f"latents/{B}"}
    assert {entry.place for entry in found.not_ours} == {f"latents/{C}", f"candidates/{A}", "root", "gone"}
    gc.delete(storage, [entry.place for entry in found.unneeded], {})
    assert not os.path.lexists(f"{storage.path}/latents/{B}")
    assert {path.name for path in there.iterdir()} == {"manifest.json", "part-00000.parquet"}
    assert read_manifest(storage / f"latents/{A}") is None
    assert storage.exists("format.json")


def test_any_filesystem_will_do():
    storage = Directory(fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory"))), "/garbage-test/runs")
    assert not storage.is_local
    make(storage, f"latents/{A}")
    make(storage, f"latents/{B}")
    storage.write("notes.txt", b"mine")
    record(storage, "k", f"latents/{A}")
    assert set(unneeded(storage)) == {f"latents/{B}"}
    gc.delete(storage, [f"latents/{B}"], {})
    assert {name.split("/")[0] for name in storage.files()} == {"latents", "notes.txt", "runs"}
    assert unneeded(storage) == {}
