"""Result files of a command, its last lines, and shell commands to run next."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ims3_ray.config.base import split_file
from ims3_ray.display import redact
from ims3_ray.errors import InputError

if TYPE_CHECKING:
    from ims3_ray.storage.directory import Directory

SCRIPTS = {"select": "select_subgroups"}  # scripts that are not named after their command


def open_result(out: str) -> tuple["Directory", str]:
    """Return directory and name of the file at `--out`. Raises InputError if it is a folder."""
    from ims3_ray.storage.directory import open_directory  # slow to import

    place, name = split_file(out)
    directory = open_directory(place)
    if not name or directory.has_directory(name):
        raise InputError(f"--out: {out} is a folder; name a file")
    return directory, name


def result_lines(results: Mapping[str, str], commands: Mapping[str, str] | None = None) -> list[str]:
    """A line per result and per command: its name, then the place or the command."""
    return [f"{name:<14} {redact(text)}" for name, text in {**results, **(commands or {})}.items()]


def shell_command(job: str, *words: str) -> str:
    """Return the command line of a job, through jobs/ or `ims3` as this process was started."""
    script = Path(sys.argv[0])
    if script.parent.name == "jobs":
        start = [installed_program("python"), str(script.with_name(f"{SCRIPTS.get(job, job)}.py"))]
    else:
        start = [installed_program("ims3"), job]
    return shlex.join([*start, *words])


def installed_program(name: str) -> str:
    """Return a program of this environment: its name if the shell finds that very one, else its path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not path.exists() or (found and os.path.samefile(found, path) and Path(found).parent == path.parent):
        return name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
