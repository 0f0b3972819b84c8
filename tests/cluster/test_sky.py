"""cluster/sky.yaml is a valid SkyPilot task that requires storage and token; Ray sends a job's code alone."""

import shlex
import shutil
import subprocess
import zipfile

import pytest
import yaml
from processes import ROOT

from ims3_ray.config.load import load_config, parse_overrides


@pytest.fixture(scope="module")
def task():
    return yaml.safe_load((ROOT / "cluster/sky.yaml").read_text())


def test_storage_and_token_are_required(task):
    assert set(task) == {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "setup", "run"}
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
    assert task["envs"]["MLFLOW_TRACKING_URI"]  # an object store requires it


def test_a_submitted_job_sends_only_code_and_recipes(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    for name in ("ims3_ray", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    for name in (".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("my-model/transformer/model.safetensors", "weights/a.pt", "docs/a.png", "mine.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    create_package(str(tmp_path), tmp_path / "sent.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "sent.zip") as sent:
        assert {name for name in sent.namelist() if not name.endswith("/")} == code | {"mine.yaml"}
