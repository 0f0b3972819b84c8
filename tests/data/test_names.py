"""Odd names and links in a data folder work or give one error line. Nothing beyond the folder changes."""

import os
import re

import pytest
from flat import opened
from tiny import write_images

from ims3_ray import cli
from ims3_ray.data.classes import check_class_names, is_folder_name
from ims3_ray.display import UNPRINTABLE, escape_unprintable, one_line
from ims3_ray.errors import InputError
from ims3_ray.pipeline.inputs import check_splits
from ims3_ray.storage.artifacts import open_directory

ODD = "a\nb\x1b[2J\r\u202egnp"
FINE = (
    *("great white shark", "Größe", "犬", "c++", "{{ 7+7 }}", "$x$", "con2", "auxiliary", "a..b", "-rf", "~"),
)
UNSAFE = [
    *("", ".", "..", ".hidden", "../x", "a/b", "a\\b", "a\nb", "a\n", "\x1b[2J", "a\x7f", "a\x85"),
    *("a\u2028b", "a\u202eb", "\udcff", "con", "CON", "nul.txt", "LPT1", "com¹", "c:", "a.", "a ", "<b>"),
    *('a"b', "a|b", "a?", "x" * 256, "ö" * 128),
]


def tree(folder):
    """Returns {path: content} of everything below."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def is_one_line(text):
    return not re.search(f"[{UNPRINTABLE}]", text)


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_class_name_is_an_error(name):
    assert not is_folder_name(name)
    with pytest.raises(InputError, match="can't be a folder's name") as refused:
        check_class_names(["fine", name])
    assert is_one_line(str(refused.value))


def test_any_other_name_of_a_file_or_class_folder_is_read(tmp_path):
    check_class_names(FINE)
    folder = write_images(tmp_path / "set", 1, seed=0, classes=FINE)
    for name in ("with blank.png", "größe.png", "犬.png", ODD, "-rf", "%2e%2e", "*"):
        os.link(folder / "犬" / "000.png", folder / "犬" / name)
    images = opened(folder, tmp_path)
    assert images.classes == tuple(sorted(FINE))
    assert f"犬/{ODD}" in images.paths
    assert images.counts()[images.classes.index("犬")] == 8


def test_hidden_files_and_folders_are_skipped(tmp_path):
    folder = write_images(tmp_path / "set", 2, seed=0)
    (folder / ".cache").mkdir()
    (folder / "red" / ".DS_Store").write_bytes(b"x")
    (folder / "red" / ".link").symlink_to("nowhere")
    images = opened(folder, tmp_path)
    assert images.classes == ("blue", "green", "red")
    assert len(images) == 6


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path):
    there = write_images(tmp_path / "elsewhere", 3, seed=0)
    here = tmp_path / "here"
    (here / "red").mkdir(parents=True)
    for name in ("blue", "green"):
        (here / name).symlink_to(there / name)
    for file in (there / "red").iterdir():
        (here / "red" / file.name).symlink_to(file)
    before = tree(there)
    images = opened(here, tmp_path)
    assert images.fingerprint == opened(there, tmp_path).fingerprint
    assert opened(here, tmp_path, classes=("blue", "red")).counts().tolist() == [3, 3]
    assert tree(there) == before


def looped(tmp_path):
    """A set with links that lead back up and to each other: too many paths to list."""
    folder = write_images(tmp_path / "set", 2, seed=0)
    for cls in ("red", "green"):
        for name in ("up", "again"):
            (folder / cls / name).symlink_to(folder)
    (folder / "red" / "deep").mkdir()
    (folder / "red" / "deep" / "self").symlink_to(folder / "red")
    (folder / "red" / "twin").symlink_to(folder / "red" / "deep")
    return folder


def test_looping_links_are_reported_by_name(tmp_path):
    folder = looped(tmp_path)
    links = ["green/again", "green/up", "red/again", "red/deep/self", "red/twin", "red/up"]
    for classes in (None, ("blue", "green", "red")):
        images = opened(folder, tmp_path, limit=1.0, classes=classes)
        assert images.counts().tolist() == [2, 2, 2]
        assert images.bad == dict.fromkeys(links, "leads to a folder that is listed already")
    with pytest.raises(InputError, match=r"6 of 12 files .* first: green/again leads to a folder"):
        opened(folder, tmp_path)


def test_entries_that_are_no_files_are_reported_by_name(tmp_path):
    folder = write_images(tmp_path / "set", 2, seed=0)
    (folder / "red" / "gone.png").symlink_to("nowhere.png")
    (folder / "red" / "self.png").symlink_to("self.png")
    (folder / "red" / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "red" / "pipe.png")
    open(os.fsencode(folder / "red") + b"/latin\xe9.png", "w").close()
    images = opened(folder, tmp_path, limit=1.0)
    assert images.counts().tolist() == [2, 2, 2]
    assert images.bad == {
        "red/gone.png": "is a symbolic link to nothing",
        "red/self.png": "is a symbolic link that leads to itself",
        "red/zero.png": "can't be listed (it is no regular file)",
        "red/pipe.png": "can't be listed (it is no regular file)",
        "red/latin\\udce9.png": "can't be listed (its name is no UTF-8)",
    }


def test_a_class_folder_that_is_a_broken_link_is_an_error(tmp_path):
    folder = write_images(tmp_path / "set", 2, seed=0)
    (folder / "teal").symlink_to("unmounted")
    with pytest.raises(
        InputError, match=r"data.train: .*/teal is a symbolic link to nothing; repair or remove it"
    ):
        opened(folder, tmp_path)


def test_an_artefact_lists_and_deletes_only_its_own_files(tmp_path):
    outside = write_images(tmp_path / "outside", 1, seed=0)
    artefact = open_directory(str(tmp_path / "storage" / "noun" / "key"))
    artefact.write("part.parquet", b"1")
    os.symlink(tmp_path / "storage", f"{artefact.path}/loop")
    os.symlink(artefact.path, f"{artefact.path}/self")
    assert list(artefact.files()) == ["part.parquet"]
    os.symlink(outside, f"{artefact.path}/outside")
    before = tree(outside)
    artefact.delete()
    assert not os.path.exists(artefact.path)
    assert tree(outside) == before


def test_a_message_is_one_line_for_any_file_name(tmp_path, capsys):
    train = write_images(tmp_path / "train", 9, seed=0)
    (train / "red" / ODD).write_bytes(b"no image")

    def run():
        opened(train, tmp_path)

    assert cli.guarded(run) == cli.BAD_INPUT
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert is_one_line(line[:-1])
    assert r"red/a\nb\x1b[2J\r\u202egnp is no readable image" in line
    test = write_images(tmp_path / "test", 9, seed=1)
    (test / "red" / ODD).write_bytes((train / "red" / "000.png").read_bytes())
    images = {"train": opened(train, tmp_path, limit=1.0), "test": opened(test, tmp_path, limit=1.0)}
    (warning,) = check_splits(images, max_overlap=0.5)
    assert is_one_line(warning)
    assert escape_unprintable(ODD) in warning


def test_an_unexpected_failure_is_one_line_and_only_the_owner_can_read_its_log(capsys):
    def fail():
        raise RuntimeError(f"first\n{ODD}\x1b]0;title\x07")

    assert cli.guarded(fail) == cli.FAILURE
    line = capsys.readouterr().err
    assert is_one_line(line[:-1])
    assert line.endswith(".log\n")
    log = line.split()[-1]
    assert os.stat(log).st_mode & 0o077 == 0
    os.unlink(log)


def test_printable_characters_are_kept():
    assert one_line(" a\n\tb \x1b[0m  c\u2028d") == r"a b \x1b[0m  c d"
    assert escape_unprintable("größe 犬 😀.png") == "größe 犬 😀.png"
    assert escape_unprintable("a\nb\udce9") == r"a\nb\udce9"
