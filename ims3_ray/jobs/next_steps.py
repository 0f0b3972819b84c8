"""How a job ends: what it made, where, and the commands that one would run next, as a shell takes them."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ims3_ray.display import redact

SCRIPTS = {"select": "select_subgroups"}  # where a script is not called as its command


def result_lines(made: Mapping[str, str], commands: Mapping[str, str]) -> list[str]:
    """A line for each: its name, and the place or the command."""
    return [f"{name:<14} {redact(it)}" for name, it in {**made, **commands}.items()]


def shell_command(job: str, *words: str) -> str:
    """A job by the same python, through jobs/ or `ims3` as this process was started."""
    script = Path(sys.argv[0])
    if script.parent.name == "jobs":
        own = [installed_program("python"), str(script.with_name(f"{SCRIPTS.get(job, job)}.py"))]
    else:
        own = [installed_program("ims3"), job]
    return shlex.join([*own, *words])


def installed_program(name: str) -> str:
    """A program that was installed with this one: its name where a shell finds it, else its path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not path.exists() or (found and os.path.samefile(found, path) and Path(found).parent == path.parent):
        return name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def json_view(document: str) -> dict[str, str]:
    """A JSON document as lines; none of one that lies in a bucket."""
    return (
        {}
        if "://" in document
        else {"look": shlex.join([installed_program("python"), "-m", "json.tool", document])}
    )
