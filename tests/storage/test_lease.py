"""Leases and heartbeats on a disk and in an object store, with any clock of the host."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from loopback_store import BUCKET

from ims3_ray.storage import lease
from ims3_ray.storage.artifacts import complete, open_directory
from ims3_ray.storage.lease import (
    DEAD_AFTER_S,
    HEARTBEAT,
    exclusive,
    heartbeat,
    is_dead,
    read_heartbeat,
    store_time,
    write_heartbeat,
)

OTHER_HOST = {"pid": 1, "host": "elsewhere", "namespace": "another"}
LEFT = f".lease.{'0' * 32}.tmp"
MINUTES = 60.0


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    place = str(tmp_path)
    if request.param == "bucket":
        request.getfixturevalue("store")
        place = f"s3://{BUCKET}/{tmp_path.name}"
    return open_directory(place) / "candidates" / "0123456789ab"


@pytest.fixture
def disk(tmp_path):
    return open_directory(str(tmp_path / "candidates" / "0123456789ab"))


@pytest.fixture(params=[-10 * MINUTES, 0.0, 10 * MINUTES])
def clock(request, monkeypatch):
    """This host's clock, apart from the store's."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + request.param)


def age(folder, name, seconds):
    """Set the store's time of a file back."""
    if folder.is_local:
        then = os.stat(f"{folder.path}/{name}").st_mtime - seconds
        os.utime(f"{folder.path}/{name}", (then, then))
        return
    from moto.s3.models import s3_backends

    (buckets,) = [of["global"].buckets for of in s3_backends.values() if BUCKET in of["global"].buckets]
    key = buckets[BUCKET].keys[f"{folder.path}/{name}".partition("/")[2]]
    key.last_modified = datetime.fromtimestamp(folder.files()[name].mtime_ns / 1e9 - seconds, UTC)


def leave(folder, **changes):
    """Another driver's lease on `folder`."""
    write_heartbeat(folder, LEFT)
    folder.write_json(LEFT, folder.read_json(LEFT) | changes)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"pid": "noon"}', b"{}"])
def test_a_damaged_heartbeat_is_none(disk, content):
    disk.write(HEARTBEAT, content)
    assert read_heartbeat(disk) is None
    assert is_dead(disk)


def test_a_heartbeat_is_removed_at_the_end(folder):
    with pytest.raises(KeyboardInterrupt), heartbeat(folder):
        raise KeyboardInterrupt
    assert read_heartbeat(folder) is None
    assert not folder.files()


def test_a_heartbeat_is_written_again_and_again(disk, monkeypatch):
    monkeypatch.setattr(lease, "INTERVAL_S", 0.05)
    with heartbeat(disk):
        for _ in range(2):
            age(disk, HEARTBEAT, 1000)
            deadline = time.monotonic() + 30
            while read_heartbeat(disk).age > 500:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_the_age_of_a_heartbeat_is_by_the_clock_of_the_store(folder, clock):
    leave(folder, **OTHER_HOST)
    living = read_heartbeat(folder, LEFT)
    assert (living.age < 30, living.is_of_other) == (True, True)
    age(folder, LEFT, DEAD_AFTER_S - 5)
    assert read_heartbeat(folder, LEFT).is_alive
    age(folder, LEFT, 10)
    dead = read_heartbeat(folder, LEFT)
    assert DEAD_AFTER_S < dead.age < DEAD_AFTER_S + 20
    assert (dead.is_stale, dead.is_of_other) == (True, False)


def test_store_time_leaves_no_file(folder, clock):
    folder.write("a", b"")
    assert abs(store_time(folder) - folder.files()["a"].mtime_ns / 1e9) < 30
    assert list(folder.files()) == ["a"]


def test_a_read_only_folder_uses_the_clock_of_the_host(disk, monkeypatch):
    write_heartbeat(disk)
    monkeypatch.setattr(type(disk), "write", Mock(side_effect=PermissionError(13, "read-only")))
    assert read_heartbeat(disk).age < 30


def test_equal_process_ids_in_another_namespace_are_another_process(disk):
    """Containers with the host's network have its name and process ids of their own."""
    leave(disk, pid=2**22 + 1, namespace="another")
    assert read_heartbeat(disk, LEFT).is_alive
    leave(disk, pid=os.getpid(), namespace="another")
    assert read_heartbeat(disk, LEFT).is_of_other
    leave(disk, pid=os.getpid())
    assert not read_heartbeat(disk, LEFT).is_of_other


@pytest.mark.parametrize("is_here", [True, False])
def test_the_lease_of_a_killed_driver_is_removed_without_waiting(folder, is_here, clock, monkeypatch):
    monkeypatch.setattr(lease, "time", SimpleNamespace(sleep=lambda _: pytest.fail("waits")))
    if is_here:  # Linux numbers no process so
        leave(folder, pid=2**22 + 1)
    else:
        leave(folder, **OTHER_HOST)
        age(folder, LEFT, DEAD_AFTER_S + 5)
    with exclusive(folder):
        assert not folder.exists(LEFT)
    assert not folder.files()


@pytest.mark.parametrize("changes", [OTHER_HOST, {"pid": os.getppid()}])
def test_a_living_driver_is_waited_for_and_logged(folder, changes, clock, monkeypatch, caplog):
    leave(folder, **changes)
    ends = []

    def end(_):
        ends.append((folder / LEFT).delete())

    monkeypatch.setattr(lease, "time", SimpleNamespace(time=time.time, sleep=end))
    with exclusive(folder):
        assert len(ends) == 1
    ((place, pid, _, seconds),) = [r.args for r in caplog.records if r.name == lease.__name__]
    assert (place, pid) == ("candidates/0123456789ab", changes["pid"])
    assert seconds < 30


def test_simultaneous_drivers_never_share_the_lease(folder, monkeypatch):
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    # threads stand for processes
    monkeypatch.setattr(lease.Heartbeat, "is_of_other", property(lambda found: found.is_alive))
    holders, most, ended, start = [], [], [], threading.Barrier(4)

    def drive(number):
        start.wait()
        with exclusive(folder):
            holders.append(number)
            most.append(len(holders))
            time.sleep(0.02)
            holders.remove(number)
        ended.append(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(drive, range(4), timeout=60))
    assert (max(most), sorted(ended)) == (1, list(range(4)))


def test_a_manifest_does_not_list_the_lease(disk):
    with exclusive(disk):
        disk.write("part-00000.parquet", b"rows")
        manifest = complete(disk, {"rows": 1})
    assert list(manifest["files"]) == ["part-00000.parquet"]
