"""Data sets of the hub: sets of this project are verified, others are left to `datasets`."""

import json

import pytest

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import complete, open_directory
from ims3_ray.storage.hub import fetch_set, hub_name


def artifact(folder, content):
    out = open_directory(str(folder))
    out.write("data/file", content)
    complete(out, {"fingerprint": "0123456789ab"})
    return folder


@pytest.mark.parametrize(
    ("location", "name"),
    [
        *((f"hf://{name}", name) for name in ("org/set", "org/set@v1.0", "org/set@refs/pr/1")),
        ("hf://datasets/org/set", "org/set"),
        *(
            (place, None)
            for place in ("hf:org/set", "org/set", "hf://set", "hf://datasets/org/set/data", "s3://org/set")
        ),
    ],
)
def test_an_address_names_one_repository(location, name):
    assert hub_name(location) == name


def test_a_revision_is_fetched_after_main_has_moved(hub, tmp_path):
    first = hub.push("org/set", artifact(tmp_path / "first", b"first"), "datasets")
    hub.push("org/set", artifact(tmp_path / "second", b"second"), "datasets")
    read = lambda place: open_directory(fetch_set(place)).read("data/file")  # noqa: E731
    assert (read(f"hf://org/set@{first}"), read("hf://org/set")) == (b"first", b"second")


def test_a_missing_or_changed_file_is_an_error(hub, tmp_path):
    folder = artifact(tmp_path / "set", b"first")
    file = folder / "data" / "file"
    for change, problem in ((lambda: file.write_bytes(b"other"), "other bytes"), (file.unlink, "not there")):
        change()
        hub.push("org/set", folder, "datasets")
        with pytest.raises(InputError, match=f"data/file .*{problem}"):
            fetch_set("hf://org/set")


def test_other_sets_are_left_to_datasets(hub, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "manifest.json").write_text(json.dumps({"files": []}))
    commit = hub.push("org/set", tmp_path / "theirs", "datasets")
    assert fetch_set("hf://org/set") == "hf:org/set"
    assert fetch_set(f"hf://org/set@{commit}") == f"hf:org/set?revision={commit}"
