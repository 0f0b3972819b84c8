"""The wheel holds everything: what is installed from it works from any folder, without the sources."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from processes import ROOT, environment

SCRATCH = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy: setuptools leaves folders beside what it builds, and takes up what lies in them."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ims3_ray", source / "ims3_ray", ignore=SCRATCH)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A fresh environment's, with the wheel, and beside it the packages that run this test."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = place.glob("lib/python*/site-packages")
    shared = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    (site / "shared.pth").write_text("\n".join(shared))  # none of whose own .pth are read: no editable source
    return python


def finished(*words, **options):
    """What it printed; nothing of the sources is known to it."""
    kept = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=kept, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*words):
    finished(sys.executable, "-m", "pip", "--disable-pip-version-check", *words)


@pytest.fixture
def ims3(python, tmp_path):
    """Runs the command from a folder of its own; gives what it printed."""

    console = python.with_name("ims3")
    return lambda *words, by=console: finished(by, *words, cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_has_every_tracked_file_of_the_package(wheel):
    tracked = finished("git", "-C", ROOT, "ls-files", "ims3_ray").split()
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert there == set(tracked)
        assert all(archive.read(name) == (ROOT / name).read_bytes() for name in there)


@pytest.mark.slow
def test_what_is_installed_runs_from_anywhere_by_its_own_files(ims3, python):
    where = "import ims3_ray; print(ims3_ray.__file__)"
    assert ims3("-c", where, by=python).startswith(str(python.parents[1]))
    assert "imagewoof" in ims3("doctor")
    assert ims3("--version") == ims3("-m", "ims3_ray", "--version", by=python)
    assert "embed" in ims3("distill", "--dry-run")
    assert "refine-parts" in ims3("sweep", "--help")
