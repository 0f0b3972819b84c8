"""docs/configuration.md and `--help` are generated from the fields' docstrings."""

import pytest
from planned import leaves
from processes import ROOT

from docs.make_configuration import page
from ims3_ray.cli import COMMANDS, run_command
from ims3_ray.config.field_docs import SETTINGS, fields, groups, help_text

PAGE = ROOT / "docs/configuration.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "make docs"


@pytest.mark.parametrize("command", SETTINGS)
def test_every_field_has_a_type_and_a_description(command):
    rows = [row for group in groups(SETTINGS[command]) for row in group.rows]
    assert {row.field for row in rows} >= set(leaves(SETTINGS[command]()))
    assert [row.field for row in rows if not row.description or not row.kind] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_commands_fields_with_an_example_in_eighty_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        run_command(command, ["--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert (help_text(command) or "usage") in text
    assert all(any(line.startswith(f"  {field}=") for line in lines) for field in fields(command))
    assert [line for line in lines if len(line) > 80] == []
    assert any(line.startswith(("    python jobs/", "    ims3 ")) for line in lines)
