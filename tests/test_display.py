"""Numbers with units, and tables."""

import sys

import pytest

from ims3_ray.display import align_columns, format_bytes


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (12_345_678, "12.3 MB"), (999.7e6, "1 GB")],
)
def test_a_size_has_three_digits_and_a_unit(num_bytes, expected):
    assert format_bytes(num_bytes) == expected


def test_a_table_wider_than_the_terminal_continues_below_its_first_column(monkeypatch):
    rows = [["run", "protocol", "accuracy"], ["one", "quick", "0.5"], ["another", "quick", "0.25"]]
    wide = ["run      protocol  accuracy", "one      quick          0.5", "another  quick         0.25"]
    monkeypatch.setenv("COLUMNS", "26")
    assert align_columns(rows, left=range(2)) == wide  # no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert align_columns(rows, left=range(2)) == [
        "run      protocol", "one      quick", "another  quick", "",
        "run      accuracy", "one           0.5", "another      0.25",
    ]  # fmt: skip
    monkeypatch.setenv("COLUMNS", "27")
    assert align_columns(rows, left=range(2)) == wide
