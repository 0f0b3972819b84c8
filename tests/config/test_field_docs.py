"""One source for the pages and `--help`: each field's own sentence."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from ims3_ray.cli import COMMANDS, run_command
from ims3_ray.config.field_docs import SETTINGS, fields, groups, help_text, page

PAGE = Path(__file__).parents[2] / "docs/configuration.md"


def leaves(settings: BaseModel, prefix=""):
    for name, value in settings:
        within = isinstance(value, BaseModel)
        yield from leaves(value, f"{prefix}{name}.") if within else [f"{prefix}{name}"]


def test_the_page_is_what_the_fields_say():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "python -m ims3_ray.config.field_docs > docs/configuration.md"
    )


@pytest.mark.parametrize("job", SETTINGS)
def test_every_field_of_a_job_has_its_place_and_a_sentence(job):
    rows = [row for group in groups(SETTINGS[job]) for row in group.rows]
    assert {row.field for row in rows} >= set(leaves(SETTINGS[job]()))
    assert [row.field for row in rows if not row.description or not row.kind] == []
    lines = help_text(job).splitlines()
    for row in rows:
        is_listed = any(line.startswith(f"  {row.field}=") for line in lines)
        assert is_listed == (row.field in fields(job)), row.field


@pytest.mark.parametrize("job", COMMANDS)
def test_help_lists_the_fields(job, capsys):
    with pytest.raises(SystemExit):
        run_command(job, ["--help"])
    assert (help_text(job) or "usage") in capsys.readouterr().out


@pytest.mark.parametrize("job", COMMANDS)
def test_help_fits_eighty_columns_and_shows_a_command(job, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        run_command(job, ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert any(line.startswith(("    python jobs/", "    ims3 ")) for line in lines)
