"""What a job writes on a terminal of 80 columns: when, and what is left on the screen."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

from processes import ROOT, environment

COLUMNS = 80


def on_terminal(name, *words, env=None):
    """(exit code, the pieces that `jobs/<name>.py` writes, each with its time in seconds)."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    command = [sys.executable, ROOT / "jobs" / f"{name}.py", *map(str, words)]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), its)
    began, pieces = time.monotonic(), [(0.0, b"")]
    with subprocess.Popen(command, env=env or environment(), start_new_session=True, **streams) as process:
        os.close(its)
        while piece := _read(ours):
            pieces.append((time.monotonic() - began, piece))
    os.close(ours)
    return process.returncode, pieces


def _read(terminal):
    try:
        return os.read(terminal, 2**16)
    except OSError:  # how Linux says that nobody has the other end any more
        return b""


def screen(pieces):
    """The lines that are left: what was written over is gone."""
    text = b"".join(piece for _, piece in pieces).decode()
    lines = []
    for line in re.sub(r"\x1b\[0?m", "", text).replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines
