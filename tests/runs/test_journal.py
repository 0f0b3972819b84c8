"""The log of a run and its signs of life, as a driver that was killed leaves them."""

import os
import time

import pytest

from ims3_ray.runs.journal import ALIVE, LOG, Journal, is_dead, last_sign, read_log, warn_of_other
from ims3_ray.storage.artifacts import open_directory


@pytest.mark.parametrize("cut", [b'{"time": "2026-01-0', b"\x00\xff", b"[1]", b'"word"'])
def test_a_line_that_is_cut_is_left_out_and_the_log_goes_on(tmp_path, cut):
    folder = open_directory(str(tmp_path))
    Journal(folder).write("run started")
    folder.write(LOG, folder.read(LOG) + cut)
    assert [event["event"] for event in read_log(folder)] == ["run started"]
    Journal(folder).write("run finished")
    events = read_log(folder)
    assert [event["event"] for event in events] == ["run started", "log mended", "run finished"]
    assert events[1]["lines_left_out"] == 1


@pytest.mark.parametrize("held", [b"", b"[]", b'{"time": "noon"}', b"{}"])
def test_a_damaged_sign_of_life_is_none(tmp_path, held):
    folder = open_directory(str(tmp_path))
    folder.write(ALIVE, held)
    assert last_sign(folder) is None
    assert is_dead(folder)


def test_two_drivers_on_one_run_write_one_log(tmp_path):
    folder = open_directory(str(tmp_path))
    one, other = Journal(folder), Journal(folder)
    for journal, stage in ((one, "encode"), (other, "encode"), (one, "invert")):
        journal.write("stage started", stage=stage)
    assert [event["stage"] for event in read_log(folder)] == ["encode", "encode", "invert"]


OTHER_HOST = {"pid": 1, "host": "elsewhere"}


@pytest.mark.parametrize(
    ("sign", "is_told"),
    [
        ({}, False),  # this process
        ({"pid": os.getppid()}, True),
        (OTHER_HOST, True),
        ({"pid": 2**22 + 1}, False),  # killed here: Linux numbers no process so
        (OTHER_HOST | {"time": time.time() - 120}, False),  # killed there, as far as can be known
    ],
)
def test_a_second_driver_is_told_of_the_first_while_that_lives(tmp_path, sign, is_told):
    folder, said = open_directory(str(tmp_path)), []
    Journal(folder).beat()
    folder.write_json(ALIVE, folder.read_json(ALIVE) | sign)
    warn_of_other(folder, said.append)
    assert len(said) == is_told
    assert all(line.startswith("warning: ") and "stop one of the two" in line for line in said)


def test_a_driver_that_has_ended_leaves_no_sign(tmp_path):
    folder = open_directory(str(tmp_path))
    with pytest.raises(KeyboardInterrupt), Journal(folder).alive():
        raise KeyboardInterrupt
    assert last_sign(folder) is None
