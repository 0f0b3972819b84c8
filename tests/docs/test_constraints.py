"""The lock file and the metadata agree."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
TESTED = dict(line.split("==") for line in LINES)


@pytest.mark.parametrize("requirement", [*map(Requirement, PROJECT["dependencies"] + EXTRAS)], ids=str)
def test_every_dependency_is_tested_at_a_version_in_its_range(requirement: Requirement) -> None:
    if requirement.name != PROJECT["name"]:
        assert requirement.specifier.contains(TESTED[canonicalize_name(requirement.name)])


def test_the_lock_file_holds_plain_versions_in_order() -> None:
    assert sorted(LINES) == LINES
    assert not [line for line in LINES if "+" in line or "@" in line or "/" in line]


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
