"""Retries: transient errors are repeated and logged once; lasting errors and full disks are not repeated."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import fsspec
import pytest
from pyarrow import fs
from tenacity import wait_exponential

from ims3_ray import cli
from ims3_ray.errors import InputError, OutageError
from ims3_ray.storage import retry
from ims3_ray.storage.artifacts import Directory, open_directory

SLOW_DOWN = "AWS Error SLOW_DOWN during ListObjectsV2 operation: Please reduce your request rate"


class Failing(fs.FSSpecHandler):
    """A filesystem in memory. Its operations raise `error` while `left` is above 0."""

    error, left, calls, lock = OSError(SLOW_DOWN), 0, 0, threading.Lock()

    def _fail(self):
        with self.lock:
            self.calls += 1
            if self.left > 0:
                self.left -= 1
                raise type(self.error)(*self.error.args)


def _failing(name):
    def act(self, *arguments):
        self._fail()
        return getattr(fs.FSSpecHandler, name)(self, *arguments)

    return act


for name in ("info", "info_selector"):
    setattr(Failing, f"get_file_{name}", _failing(f"get_file_{name}"))
for name in ("open_input_file", "open_output_stream", "delete_dir"):
    setattr(Failing, name, _failing(name))


@pytest.fixture
def clock(monkeypatch):
    """The pauses, without jitter. They take no time and advance the clock of `retry`."""
    pauses = []
    monkeypatch.setattr(retry, "PAUSES", wait_exponential(max=retry.MAX_PAUSE_S))
    monkeypatch.setattr(retry, "_outages", {})
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    monkeypatch.setattr(retry.time, "monotonic", lambda: 1000.0 + sum(pauses))
    return pauses


@pytest.fixture
def failing():
    return Failing(fsspec.filesystem("memory", skip_instance_cache=True))


@pytest.fixture
def bucket(failing, tmp_path):
    return Directory(fs.PyFileSystem(failing), f"{tmp_path}/runs", f"s3://bucket{tmp_path}/runs")


def test_every_operation_is_retried_and_the_error_logged_once(bucket, failing, clock, caplog):
    operations = {
        "write": (lambda: bucket.write("a/b", b"data"), None),
        "read": (lambda: bucket.read("a/b"), b"data"),
        "exists": (lambda: bucket.exists("a/b"), True),
        "has_directory": (lambda: bucket.has_directory("a"), True),
        "files": (lambda: list(bucket.files()), ["a/b"]),
        "folders": (lambda: list(bucket.folders()), ["a"]),
        "delete a file": (lambda: (bucket / "a/b").delete(), None),
        "delete": (lambda: bucket.delete(), None),
    }
    for name, (act, result) in operations.items():
        failing.left, before = 3, len(clock)
        assert act() == result, name
        assert clock[before:] == [1.0, 2.0, 4.0], name
        clock.append(retry.QUIET_S)
        (line,) = caplog.messages
        caplog.clear()
        assert line.startswith("s3://bucket")
        assert SLOW_DOWN in line
    assert not bucket.files()


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "not there"),
        PermissionError(errno.EACCES, "not allowed"),
        OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
        OSError("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation"),
        OSError("AWS Error UNKNOWN (HTTP status 400) during ListObjectsV2 operation: ExpiredToken"),
    ],
)
def test_lasting_errors_are_raised_at_once(bucket, failing, clock, caplog, error):
    failing.error, failing.left = error, 1
    with pytest.raises(type(error)) as raised:
        bucket.read("a")
    assert not isinstance(raised.value, InputError)
    assert (failing.calls, clock, caplog.messages) == (1, [], [])


def test_errors_of_a_local_disk_are_not_retried(tmp_path, clock, monkeypatch):
    fail = Mock(side_effect=OSError(errno.EIO, "input/output error"))
    monkeypatch.setattr("ims3_ray.storage.directory._replace_local", fail)
    with pytest.raises(OSError, match="input/output error"):
        open_directory(str(tmp_path)).write("a", b"")
    assert clock == []


def test_retries_end_after_the_limit_and_the_next_operation_gets_no_new_limit(bucket, failing, clock, caplog):
    failing.left = 10**6
    for seconds in (retry.MAX_RETRY_S, 0.0):
        before = sum(clock)
        with pytest.raises(OutageError, match=r"^s3://bucket.*SLOW_DOWN"):
            bucket.read("a")
        assert sum(clock) - before == seconds
        assert max(clock) <= retry.MAX_PAUSE_S
    assert len(caplog.messages) == 1
    failing.left = 0
    bucket.write("a", b"")
    failing.left = 2
    assert bucket.read("a") == b""


def test_separate_errors_each_get_the_full_limit_and_are_logged_once(bucket, failing, clock, caplog):
    bucket.write("a", b"")
    for _ in range(100):
        failing.left = 2
        assert bucket.read("a") == b""
    assert len(caplog.messages) == 1
    assert sum(clock) > retry.MAX_RETRY_S


def test_threads_log_an_error_once(bucket, failing, clock, caplog, monkeypatch):
    monkeypatch.setattr(retry.time, "monotonic", lambda: 1000.0)  # simultaneous pauses do not add up
    bucket.write("a", b"")
    failing.left = 8
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bucket.read, ["a"] * 8))
    assert (len(caplog.messages), failing.left) == (1, 0)


def test_storage_errors_inside_errors_of_ray_are_retried_and_others_are_not(clock):
    class WorkersError(RuntimeError):
        worker_failures = {0: OSError(SLOW_DOWN)}  # noqa: RUF012

    tries = iter([WorkersError("2 workers failed"), WorkersError("again"), None])

    def act():
        if error := next(tries):
            raise error
        return "result"

    assert retry.with_retries("s3://bucket/checkpoints", act) == "result"
    assert clock == [1.0, 2.0]
    for error in (RuntimeError("a bug"), InputError("reported")):
        with pytest.raises(type(error), match=str(error)):
            retry.with_retries("s3://bucket/x", lambda error=error: (_ for _ in ()).throw(error))


def test_a_full_store_is_not_retried(bucket, failing, clock):
    failing.error, failing.left = OSError("AWS Error UNKNOWN (HTTP status 507): XMinioStorageFull"), 1
    with pytest.raises(InputError, match="no space left"):
        bucket.write("a", b"")
    assert clock == []


def test_a_full_disk_is_bad_input_of_the_command_line_wherever_it_is_raised(capsys):
    from ray.exceptions import RayTaskError

    def in_a_worker():
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "/data/runs/x")
        except OSError as error:
            raise RuntimeError("a worker died") from error

    def in_a_task(error):
        raise RayTaskError("write_class", "a trace\nof many lines", error).as_instanceof_cause()

    full = OSError(errno.ENOSPC, "No space left on device", "/data/runs/x")
    for act in (
        in_a_worker,
        lambda: in_a_task(full),
        lambda: in_a_task(InputError("/data/runs/x: no space left")),
    ):
        assert cli.guarded(act) == cli.BAD_INPUT
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: /data/runs/x: no space left")


def on_small_disk(folder, script):
    """Returns the output of a script in a file system of 1 MB; skips if none can be mounted."""
    folder.mkdir()
    mounted = 'mount -t tmpfs -o size=1m tmpfs "$0" && cd "$0" && '
    words = ["unshare", "-rm", "bash", "-c"]
    if subprocess.run([*words, mounted + "true", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    words += [mounted + 'exec "$@"', folder, sys.executable, "-c", textwrap.dedent(script)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_leaves_no_half_file_and_the_storage_works_again_with_space(tmp_path):
    script = """
        import os
        from ims3_ray.errors import InputError
        from ims3_ray.storage.artifacts import open_storage

        def fails(act):
            try:
                act()
            except InputError as error:
                print(error)
            else:
                raise SystemExit("was written")

        root = open_storage("runs")
        root.write("old", b"kept")
        fails(lambda: root.write("part", bytes(2**21)))
        fails(lambda: root.write("old", bytes(2**21)))
        assert sorted(os.listdir("runs")) == ["format.json", "old"] and root.read("old") == b"kept"
        left = os.statvfs(".").f_bavail * os.statvfs(".").f_frsize
        root.write("filling", bytes(left))
        fails(lambda: open_storage("other"))
        (root / "filling").delete()
        open_storage("other").write("part", bytes(left // 2))
    """
    lines = on_small_disk(tmp_path / "disk", script).splitlines()
    assert len(lines) == 3
    for line, place in zip(lines, ("runs/part", "runs/old", "other/"), strict=True):
        assert f"{tmp_path}/disk/{place}" in line
        assert "no space left" in line
