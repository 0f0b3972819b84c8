"""cluster/sky.yaml: a valid SkyPilot task that requires storage and token."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from ims3_ray.config.load import load_config, parse_overrides

SKY = Path(__file__).parents[2] / "cluster/sky.yaml"
FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "setup", "run"}


@pytest.fixture(scope="module")
def task():
    return yaml.safe_load(SKY.read_text())


def test_storage_and_token_are_required(task):
    assert set(task) == FIELDS
    needed = [name for kind in ("envs", "secrets") for name, value in task[kind].items() if value is None]
    assert needed == ["STORAGE", "RAY_AUTH_TOKEN"]
    assert "RAY_AUTH_MODE=token" in task["run"]


@pytest.mark.parametrize("part", ["setup", "run"])
def test_its_commands_are_valid_shell(task, part):
    assert subprocess.run(["bash", "-n"], input=task[part], text=True, check=False).returncode == 0


def test_the_head_distils_with_a_valid_recipe(task):
    environment = task["envs"] | {"STORAGE": "/shared/runs", "OVERRIDES": "ipc=5 seed=1"}
    (line,) = (line.strip() for line in task["run"].splitlines() if "distill.py" in line)
    printed = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}; {line}"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    script, option, recipe, *words = shlex.split(printed)
    assert (script, option) == ("jobs/distill.py", "--recipe")
    config = load_config(recipe, parse_overrides(words))
    assert (config.ipc, config.seed, config.storage) == (5, 1, "/shared/runs")
