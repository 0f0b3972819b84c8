"""Jobs as a person would start them: processes, by their words."""

import os
import re
import subprocess
import sys
from pathlib import Path

from ims3_ray.storage.artifacts import open_directory

ROOT = Path(__file__).parents[2]


def environment():
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "IMS3_"))}
    return kept | {"PYTHONUNBUFFERED": "1"}


def job(name, *words, **options):
    """Start `jobs/<name>.py`, with a Ray cluster of its own unless `env` names one."""
    options = {"env": environment()} | options
    return subprocess.Popen(
        [sys.executable, ROOT / "jobs" / f"{name}.py", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finished(name, *words, **options):
    process = job(name, *words, **options)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def started_until(mark, name, *words, **options):
    """Start a job and wait for a line with this pattern; returns the process."""
    process = job(name, *words, **options)
    assert any(re.search(mark, line) for line in process.stdout), process.stderr.read()
    return process


def python(script, *words, **options):
    """Run a script to its end; returns what `subprocess.run` does."""
    options = {"env": environment()} | options
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, **options
    )


def images(distilled):
    """Path and checksum of each image of a distilled set, wherever it lies."""
    entries = open_directory(str(distilled)).read_json("manifest.json")["images"]
    assert entries
    return [(entry["path"], entry["sha256"]) for entry in entries]


def checksums(storage):
    """`images` of each distilled set in a storage."""
    sets = open_directory(f"{storage}/distilled")
    return [
        images((sets / name.split("/")[0]).uri) for name in sets.files() if name.endswith("/manifest.json")
    ]
