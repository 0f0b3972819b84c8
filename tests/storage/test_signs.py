"""Signs of life, as drivers that work, wait or were killed leave them; and one driver at a time."""

import os
import threading
import time

import pytest

from ims3_ray.storage import signs
from ims3_ray.storage.artifacts import complete, open_directory
from ims3_ray.storage.signs import ALIVE, alone, beat, beating, is_dead, read_sign

OTHER_HOST = {"pid": 1, "host": "elsewhere"}
LEFT = f".at-work.{'0' * 32}.tmp"


@pytest.fixture
def folder(tmp_path):
    return open_directory(str(tmp_path / "candidates" / "0123456789ab"))


def leave(folder, **changes):
    """Another driver's sign that it works in `folder`."""
    beat(folder, LEFT)
    folder.write_json(LEFT, folder.read_json(LEFT) | changes)


@pytest.mark.parametrize("held", [b"", b"[]", b'{"time": "noon"}', b"{}"])
def test_a_damaged_sign_of_life_is_none(folder, held):
    folder.write(ALIVE, held)
    assert read_sign(folder) is None
    assert is_dead(folder)


def test_a_driver_that_has_ended_leaves_no_sign(folder):
    with pytest.raises(KeyboardInterrupt), beating(folder):
        raise KeyboardInterrupt
    assert read_sign(folder) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**22 + 1},  # killed here: Linux numbers no process so
        OTHER_HOST | {"time": time.time() - 120},  # killed there, as far as can be known
    ],
)
def test_a_driver_that_was_killed_is_not_waited_for_and_what_it_left_is_removed(folder, changes, caplog):
    leave(folder, **changes)
    with alone(folder):
        assert not folder.exists(LEFT)
    assert not folder.files()
    assert not caplog.messages


@pytest.mark.parametrize("changes", [OTHER_HOST, {"pid": os.getppid()}])
def test_a_driver_at_work_is_waited_for_with_one_line_that_names_it(folder, changes, monkeypatch, caplog):
    monkeypatch.setattr(signs, "LOOK_S", 0.05)
    leave(folder, **changes)
    ended = threading.Event()

    def end():
        ended.set()
        (folder / LEFT).delete()

    threading.Timer(0.5, end).start()
    with alone(folder):
        assert ended.is_set()
    (line,) = caplog.messages
    assert line.startswith(f"candidates/0123456789ab: process {changes['pid']} on ")
    assert "waiting" in line


def test_of_drivers_that_begin_together_no_two_are_at_work_at_once(folder, monkeypatch):
    monkeypatch.setattr(signs, "LOOK_S", 0.05)
    # threads stand for processes
    monkeypatch.setattr(signs.Sign, "is_of_other", property(lambda sign: sign.is_alive))
    at_work, most, ended = [], [], []

    def drive(number):
        with alone(folder):
            at_work.append(number)
            most.append(len(at_work))
            time.sleep(0.02)
            at_work.remove(number)
        ended.append(number)

    drivers = [threading.Thread(target=drive, args=[number]) for number in range(5)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(timeout=60)
    assert (max(most), sorted(ended)) == (1, list(range(5)))


def test_what_is_made_meanwhile_names_no_sign(folder):
    with alone(folder):
        folder.write("part-00000.parquet", b"rows")
        manifest = complete(folder, {"rows": 1})
    assert list(manifest["files"]) == ["part-00000.parquet"]
