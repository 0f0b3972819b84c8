"""Odd names and links in a data folder work or give one error line. Nothing beyond the folder changes."""

import os
import re

import pytest
from flat import opened
from tiny import tree, write_images

from ims3_ray import cli
from ims3_ray.data.classes import check_class_names, is_folder_name
from ims3_ray.display import UNPRINTABLE, escape_unprintable, one_line
from ims3_ray.errors import InputError
from ims3_ray.pipeline.inputs import check_splits
from ims3_ray.storage.artifacts import open_directory

ODD = "a\nb\x1b[2J\r\u202egnp"
SAFE = [
    "great white shark",
    "Größe",
    "犬",
    "c++",
    "{{ 7+7 }}",
    "$x$",
    "con2",
    "auxiliary",
    "a..b",
    "-rf",
    "~",
]
UNSAFE = [
    *("", ".", "..", ".hidden", "../x", "a/b", "a\\b", "a\nb", "a\n", "\x1b[2J", "a\x7f", "a\x85"),
    *("a\u2028b", "a\u202eb", "\udcff", "con", "CON", "nul.txt", "LPT1", "com¹", "c:", "a.", "a ", "<b>"),
    *('a"b', "a|b", "a?", "x" * 256, "ö" * 128),
]


def is_one_line(text):
    return not re.search(f"[{UNPRINTABLE}]", text)


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "set", 2, seed=0)


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_class_name_is_an_error(name):
    assert not is_folder_name(name)
    with pytest.raises(InputError, match="folder's name") as refused:
        check_class_names(["fine", name])
    assert is_one_line(str(refused.value))


def test_any_other_name_of_a_file_or_class_folder_is_read(tmp_path):
    check_class_names(SAFE)
    folder = write_images(tmp_path / "set", 1, seed=0, classes=SAFE)
    for name in ("with blank.png", "größe.png", "犬.png", ODD, "-rf", "%2e%2e", "*"):
        os.link(folder / "犬" / "000.png", folder / "犬" / name)
    images = opened(folder, tmp_path)
    assert images.classes == tuple(sorted(SAFE))
    assert f"犬/{ODD}" in images.paths
    assert images.counts()[images.classes.index("犬")] == 8


def test_hidden_files_and_folders_are_skipped(folder, tmp_path):
    (folder / ".cache").mkdir()
    (folder / "red" / ".DS_Store").write_bytes(b"x")
    (folder / "red" / ".link").symlink_to("nowhere")
    images = opened(folder, tmp_path)
    assert (images.classes, len(images)) == (("blue", "green", "red"), 6)


def test_links_to_files_and_folders_elsewhere_are_followed(folder, tmp_path):
    here = tmp_path / "here"
    (here / "red").mkdir(parents=True)
    for name in ("blue", "green", *(f"red/{file.name}" for file in (folder / "red").iterdir())):
        (here / name).symlink_to(folder / name)
    before = tree(folder)
    assert opened(here, tmp_path).fingerprint == opened(folder, tmp_path).fingerprint
    assert opened(here, tmp_path, classes=("blue", "red")).counts().tolist() == [2, 2]
    assert tree(folder) == before


def test_looping_links_are_reported_by_name(folder, tmp_path):
    (folder / "red" / "deep").mkdir()
    links = ["green/again", "green/up", "red/again", "red/deep/self", "red/twin", "red/up"]
    for link in links:
        target = {"red/deep/self": "red", "red/twin": "red/deep"}.get(link, "")
        (folder / link).symlink_to(folder / target)
    for classes in (None, ("blue", "green", "red")):
        images = opened(folder, tmp_path, limit=1.0, classes=classes)
        assert images.counts().tolist() == [2, 2, 2]
        assert list(images.bad) == links
        assert all("folder" in why for why in images.bad.values())
    with pytest.raises(InputError, match=r"6 of 12 .*green/again"):
        opened(folder, tmp_path)


def test_entries_that_are_no_files_are_reported_by_name(folder, tmp_path):
    red = folder / "red"
    for name, target in (("gone", "nowhere.png"), ("self", "self.png"), ("zero", "/dev/zero")):
        (red / f"{name}.png").symlink_to(target)
    os.mkfifo(red / "pipe.png")
    open(os.fsencode(red) + b"/latin\xe9.png", "w").close()
    images = opened(folder, tmp_path, limit=1.0)
    assert images.counts().tolist() == [2, 2, 2]
    reasons = {"gone": "to nothing", "self": "itself", "zero": "regular", "pipe": "regular"}
    reasons["latin\\udce9"] = "UTF-8"
    assert set(images.bad) == {f"red/{name}.png" for name in reasons}
    assert all(reason in images.bad[f"red/{name}.png"] for name, reason in reasons.items())


def test_a_class_folder_that_is_a_broken_link_is_an_error(folder, tmp_path):
    (folder / "teal").symlink_to("unmounted")
    with pytest.raises(InputError, match=r"data\.train: .*/teal is a symbolic link to nothing"):
        opened(folder, tmp_path)


def test_an_artefact_lists_and_deletes_only_its_own_files(folder, tmp_path):
    artefact = open_directory(str(tmp_path / "storage" / "noun" / "key"))
    artefact.write("part.parquet", b"1")
    os.symlink(tmp_path / "storage", f"{artefact.path}/loop")
    os.symlink(artefact.path, f"{artefact.path}/self")
    assert list(artefact.files()) == ["part.parquet"]
    os.symlink(folder, f"{artefact.path}/outside")
    before = tree(folder)
    artefact.delete()
    assert not os.path.exists(artefact.path)
    assert tree(folder) == before


def test_a_message_is_one_line_for_any_file_name(tmp_path, capsys):
    train, test = (write_images(tmp_path / split, 9, seed) for seed, split in enumerate(("train", "test")))
    (train / "red" / ODD).write_bytes(b"no image")
    assert cli.guarded(lambda: opened(train, tmp_path)) == cli.BAD_INPUT
    line = capsys.readouterr().err
    assert is_one_line(line.removesuffix("\n"))
    assert r"red/a\nb\x1b[2J\r\u202egnp" in line
    (test / "red" / ODD).write_bytes((train / "red" / "000.png").read_bytes())
    images = {"train": opened(train, tmp_path, limit=1.0), "test": opened(test, tmp_path, limit=1.0)}
    (warning,) = check_splits(images, max_overlap=0.5)
    assert is_one_line(warning)
    assert escape_unprintable(ODD) in warning


def test_printable_characters_are_kept():
    assert one_line(" a\n\tb \x1b[0m  c\u2028d") == r"a b \x1b[0m  c d"
    assert escape_unprintable("größe 犬 😀.png") == "größe 犬 😀.png"
    assert escape_unprintable("a\nb\udce9") == r"a\nb\udce9"
