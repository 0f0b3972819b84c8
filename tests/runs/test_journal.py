"""The log of a run and its signs of life, as a driver that was killed leaves them."""

import pytest

from ims3_ray.runs.journal import ALIVE, LOG, Journal, read_log, seconds_since_alive
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
    assert seconds_since_alive(folder) is None
