"""What stages show of their progress where the output is no terminal: lines, few and whole."""

from ims3_ray.progress import bar


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with bar("encode", 300, "images") as shown:
        for _ in range(300):
            now[0] += 1
            shown.update()
    text = capsys.readouterr().err
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [line.split("|")[2].split()[0] for line in lines] == [
        "0/300", "60/300", "120/300", "180/300", "240/300", "300/300", "300/300"
    ]  # fmt: skip


def test_bars_within_each_other_write_whole_lines(capsys):
    with bar("evaluate", 2, "classifiers") as outer, bar("inner", 1, "classes") as inner:
        inner.update()
        outer.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.split(":")[0].strip() in ("evaluate", "inner") for line in lines)
    assert any("2/2" in line for line in lines)
