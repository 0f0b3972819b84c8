"""Output of a run on a terminal and in a log: our lines and bars only."""

import itertools
import re

import pytest
from processes import environment, finished
from terminal import COLUMNS, on_terminal, screen

MOST_SILENCE_S = 10.0
STAGE = re.compile(r"\[\d+/\d+\] \w+ → \S+")
DONE = re.compile(r" *\w+: ([\d,]+ [\w, ]+ in )?\d+\.\d s")


@pytest.mark.slow
def test_a_terminal_has_every_stage_nothing_else_and_no_long_silence(cluster_environment, tiny_overrides):
    code, pieces = on_terminal("distill", *tiny_overrides, env=environment() | cluster_environment)
    text, lines = b"".join(piece for _, piece in pieces).decode(), screen(pieces)
    assert code == 0, text
    assert max(b - a for (a, _), (b, _) in itertools.pairwise(pieces)) < MOST_SILENCE_S
    first = next(n for n, line in enumerate(lines) if line.startswith("accuracy on"))
    shown = [line for line in lines[:first] if line]
    assert sum(bool(STAGE.fullmatch(line)) for line in shown) == 9
    assert [line for line in shown if not STAGE.fullmatch(line) and not DONE.fullmatch(line)] == []
    bars = re.findall(r"\r( *\w+: [^\r\n]*)", text)
    assert max(map(len, bars)) < COLUMNS  # else it wraps, and the next is drawn below
    tables = itertools.takewhile(lambda line: not line.startswith("distilled set"), lines[first:])
    assert max(map(len, tables)) <= COLUMNS


@pytest.mark.slow
def test_a_log_has_a_line_per_start_and_end_and_libraries_have_a_file(tiny_overrides, tmp_path):
    code, out, err = finished("distill", *tiny_overrides)  # in a cluster of its own
    assert code == 0, err
    assert [line for line in err.splitlines() if not DONE.fullmatch(line)] == []
    assert [line.split()[1] for line in out.splitlines() if STAGE.fullmatch(line)] == [
        "encode", "invert", "finetune", "embed", "sample", "select", "export", "evaluate", "report"
    ]  # fmt: skip
    (kept,) = (tmp_path / "runs").glob("runs/*/libraries.log")
    assert "core_worker.cc" in kept.read_text()
