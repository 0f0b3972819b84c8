"""jobs/runs.py --verify: every byte against its checksum."""

import json

import pytest

from ims3_ray.cli import main
from ims3_ray.storage.artifacts import complete, open_storage, read_manifest
from ims3_ray.storage.rows import part_names


@pytest.fixture
def storage(tmp_path):
    """Three artefacts of two files, a cached plan and a record."""
    root = open_storage(str(tmp_path))
    for place in ("latents/aaaaaaaaaaaa", "latents/bbbbbbbbbbbb", "selection/cccccccccccc"):
        for name in ("part-00000.parquet", "part-00001.parquet"):
            (root / place).write(name, place.encode())
        complete(root / place, {"rows": 2})
    root.write_json("index/000000000000.json", {})
    root.write_json("runs/digits-1/run.json", {"artifacts": []})
    root.write("sweeps/s/tune/t/result.json", b"")
    return root


def ask(storage, capsys, *words):
    capsys.readouterr()
    code = main(["runs", "--verify", *words, f"storage={storage.uri}"])
    return code, *capsys.readouterr()


def test_an_intact_storage_verifies(storage, capsys):
    code, out, err = ask(storage, capsys)
    assert (code, err) == (0, "")
    assert "3 artefacts" in out


def test_damage_is_listed_and_removed_with_yes(storage, capsys):
    record = "runs/digits-1/run.json"  # no run makes it again
    damage = {
        "latents/aaaaaaaaaaaa/part-00001.parquet": b"latents/aaaaaaaaaaaA",  # of equal size
        "selection/cccccccccccc/part-00000.parquet": b"",
        "index/000000000000.json": b"{",
        record: b"",
    }
    for place, content in damage.items():
        storage.write(place, content)
    (storage / "selection/cccccccccccc/part-00000.parquet").delete()
    code, out, err = ask(storage, capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert all(place in out for place in damage)
    assert "--verify --yes" in err
    assert record in err
    code, out, _ = ask(storage, capsys, "--yes", "--json")
    document = json.loads(out)
    assert code == 2
    assert {entry["place"] for entry in document["damaged"]} == set(damage)
    assert set(document["removed"]) == set(damage) - {record}
    assert read_manifest(storage / "latents/aaaaaaaaaaaa") is None
    assert part_names(storage / "latents/aaaaaaaaaaaa") == ["part-00000.parquet"]
    assert read_manifest(storage / "latents/bbbbbbbbbbbb")


def test_a_storage_of_a_newer_format_is_refused(storage, refused):
    storage.write_json("format.json", {"format": 99})
    for mode in ("--verify", "--gc"):
        assert "format 99" in refused("runs", mode, "--yes", f"storage={storage.uri}")
    assert read_manifest(storage / "latents/aaaaaaaaaaaa")
