"""Progress bars on a terminal and in a log, and the output of libraries."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ims3_ray.progress import bar, print_line, spinner, timed


def test_a_log_gets_a_line_per_minute_and_one_at_the_end(capsys, monkeypatch):
    now = [1000.0]
    for clock in ("tqdm.std.time", "ims3_ray.progress.time.time"):
        monkeypatch.setattr(clock, lambda: now[0])
    with bar("encode", 300, "images") as shown:
        for _ in range(299):
            now[0] += 1
            shown.update()
    assert capsys.readouterr().err.splitlines() == [
        "   encode: 60/300 images [01:00<04:00]",
        "   encode: 120/300 images [02:00<03:00]",
        "   encode: 180/300 images [03:00<02:00]",
        "   encode: 240/300 images [04:00<01:00]",
        "   encode: 299 of 300 images in 299.0 s",
    ]


class Terminal(io.StringIO):
    """Sets `drawn` when a bar is drawn for the third time, and fails from then on."""

    def __init__(self):
        super().__init__()
        self.draws, self.drawn = 0, threading.Event()

    def isatty(self):
        return True

    def write(self, text):
        self.draws += "images" in text
        if self.draws >= 3:
            self.drawn.set()
            raise BrokenPipeError
        return super().write(text)


def test_an_idle_bar_is_refreshed_and_a_broken_stream_raises_and_never_blocks(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("ims3_ray.progress.TERMINAL_S", 0.01)
    shown = bar("encode", 3, "images")
    assert terminal.drawn.wait(timeout=60)

    def close():
        with pytest.raises(BrokenPipeError):
            shown.close()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(timeout=60)
    assert not closing.is_alive()


def test_a_bar_ends_in_one_line_unless_it_failed(capsys):
    with bar("evaluate", 1, "classifiers") as shown, timed("report"), spinner("start"):
        print_line("beside them")
        shown.update()
    with bar("select", 9, "classes", done=7) as shown:
        shown.update(2)
    with pytest.raises(ValueError), bar("sample", 2, "images"):  # noqa: PT011
        raise ValueError
    printed = capsys.readouterr()
    assert printed.out == "beside them\n"
    assert [line.rpartition(" 0.")[0] for line in printed.err.splitlines()] == [
        "   report:", " evaluate: 1 classifier in", "   select: 9 classes, 7 of them found, in"
    ]  # fmt: skip


WRITES = """
import logging, os, sys, warnings
from ims3_ray import progress
progress.redirect_library_output()
os.write(2, b"of C\\n")
os.system("echo of a child >&2")
print("of Python", file=sys.stderr)
warnings.warn("of a library", DeprecationWarning)
logging.getLogger("a.library").error("logged")
progress.print_line("ours", progress.message_stream())
print(progress.library_log())
"""


def test_library_output_goes_to_a_private_file():
    shown = subprocess.run([sys.executable, "-W", "always", "-c", WRITES], capture_output=True, text=True)
    assert shown.stderr == "ours\n"
    log = Path(shown.stdout.strip())
    written, mode = log.read_text(), log.stat().st_mode & 0o777
    log.unlink()
    assert mode == 0o600
    for line in ("of C", "of a child", "of Python", "DeprecationWarning: of a library", "logged"):
        assert line in written
