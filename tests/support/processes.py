"""Jobs as a person would start them: processes, by their words."""

import os
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


def checksums(storage):
    """Path and checksum of each image of each distilled set in a storage, wherever it lies."""
    sets = open_directory(str(storage)) / "distilled"
    manifests = [sets.read_json(name) for name in sets.files() if name.endswith("/manifest.json")]
    return [[(image["path"], image["sha256"]) for image in manifest["images"]] for manifest in manifests]
