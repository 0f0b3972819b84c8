"""Rows cached on disk: equal values, filled once, removed after use."""

import textwrap
import tracemalloc

import numpy as np
import pytest
from processes import python

from ims3_ray.errors import InputError
from ims3_ray.storage.disk_cache import cache_folder, open_cache, remove_unused
from ims3_ray.storage.rows import prefetch

pytestmark = pytest.mark.usefixtures("own_tempdir")


def parts(count=3, rows=4, seed=0):
    draws = np.random.default_rng(seed)
    for place in range(count):
        label = np.arange(rows) + rows * place
        yield {"label": label, "value": draws.normal(size=(rows, 5, 2, 3)).astype(np.float16)}


def whole(**options):
    return {name: np.concatenate([part[name] for part in parts(**options)]) for name in ("label", "value")}


@pytest.fixture
def rows():
    return open_cache("k", parts, 1)


def is_empty():
    return not [entry for entry in cache_folder().iterdir() if entry.is_dir()]


def not_called():
    pytest.fail("a row was read")


def test_rows_are_equal_in_any_order(rows):
    expected = whole()
    wanted = np.array([7, 0, 11, 7])
    assert (rows.count, rows.shape("value")) == (12, (5, 2, 3))
    assert np.array_equal(rows.read("label", wanted), expected["label"][wanted])
    assert np.array_equal(rows.read("value", wanted), expected["value"][wanted])
    inner = np.array([4, 0, 2, 1])
    assert np.array_equal(rows.read("value", wanted, inner), expected["value"][wanted, inner])


def test_rows_are_filled_once_and_removed_by_the_last_close(rows):
    second = open_cache("k", not_called, 1)
    rows.close()
    assert second.read("label", [3]).tolist() == [3]
    second.close()
    assert is_empty()


def test_a_killed_fill_starts_afresh():
    def killed():
        yield next(parts())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache("k", killed, 1)
    rows = open_cache("k", parts, 1)
    assert np.array_equal(rows.read("value", range(rows.count)), whole()["value"])


def test_a_fill_that_fails_at_its_last_file_starts_afresh(monkeypatch):
    def full(path, text):
        path.write_bytes(text[:5].encode())
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OSError, match="no space"):
            open_cache("k", parts, 1)
    assert open_cache("k", parts, 1).count == 12


def test_rows_of_a_killed_process_are_reused_or_removed_before_the_next_fill(tmp_path):
    script = f"""
        import os, tempfile
        tempfile.tempdir = {str(tmp_path)!r}
        import numpy as np
        from ims3_ray.storage.disk_cache import open_cache
        open_cache("left", lambda: [{{"label": np.arange(2)}}], 1)
        os.kill(os.getpid(), 9)
    """
    assert python(textwrap.dedent(script)).returncode == -9
    assert (cache_folder() / "left").is_dir()
    used = open_cache("used", parts, 1)
    assert not (cache_folder() / "left").exists()
    open_cache("third", parts, 1)
    assert used.read("label", [0]).tolist() == [0]
    assert open_cache("used", not_called, 1).count == 12


def test_writing_to_mapped_rows_changes_no_file(rows):
    expected, values = whole()["value"], rows.mapped("value")
    assert np.array_equal(values, expected)
    values[:] = 0
    assert np.array_equal(rows.read("value", range(12)), expected)
    assert np.array_equal(rows.mapped("value"), expected)


def test_kept_rows_are_reused_and_removed_only_if_unused(rows):
    rows.close(keep=True)
    again = open_cache("k", not_called, 1)
    remove_unused(["k", "never there"])
    assert again.read("label", [3]).tolist() == [3]
    again.close(keep=True)
    remove_unused(["k"])
    assert is_empty()


def test_a_too_small_disk_is_an_error_before_a_row_is_read():
    with pytest.raises(InputError, match="free some"):
        open_cache("k", not_called, 1e18, "free some")


def test_memory_does_not_grow_with_the_rows():
    peaks = []
    for count in (2, 40):
        tracemalloc.start()
        rows = open_cache(f"k{count}", lambda count=count: parts(count, rows=2000), 1)
        for start in range(0, rows.count - 8, 500):
            rows.read("value", range(start, start + 8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        rows.close()
    assert peaks[1] < 1.3 * peaks[0]


def test_prefetch_keeps_the_order_and_its_limit():
    read, used = [], []
    for value in prefetch(lambda item: read.append(item) or item * item, range(50), 3):
        used.append(value)
        assert len(read) <= len(used) + 3
    assert used == [item * item for item in range(50)]
