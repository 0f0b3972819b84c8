"""Event logs with damaged lines and with two drivers."""

import pytest

from ims3_ray.runs.event_log import LOG, EventLog, read_events
from ims3_ray.storage.artifacts import open_directory


@pytest.mark.parametrize("cut", [b'{"time": "2026-01-0', b"\x00\xff", b"[1]", b'"word"'])
def test_a_damaged_line_is_dropped_and_the_log_continues(tmp_path, cut):
    folder = open_directory(str(tmp_path))
    EventLog(folder).write("run started")
    folder.write(LOG, folder.read(LOG) + cut)
    assert [event["event"] for event in read_events(folder)] == ["run started"]
    EventLog(folder).write("run finished")
    events = read_events(folder)
    assert [event["event"] for event in events] == ["run started", "log mended", "run finished"]
    assert events[1]["lines_left_out"] == 1


def test_two_drivers_on_one_run_write_one_log(tmp_path):
    folder = open_directory(str(tmp_path))
    one, other = EventLog(folder), EventLog(folder)
    for log, stage in ((one, "encode"), (other, "encode"), (one, "invert")):
        log.write("stage started", stage=stage)
    assert [event["stage"] for event in read_events(folder)] == ["encode", "encode", "invert"]
