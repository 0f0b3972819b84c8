"""What a job prints at its end is right as a shell reads it, however the job was started."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from ims3_ray.jobs.next_steps import installed_program, open_result, result_lines, shell_command


@pytest.mark.parametrize("script", ["jobs/distill.py", "/code/jobs/sweep.py"])
def test_a_command_is_given_as_the_job_was(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script])
    python, *words = shlex.split(shell_command("runs", "storage=/data/my runs; $(rm)"))
    assert Path(python).name == "python"
    assert words == [str(Path(script).with_name("runs.py")), "storage=/data/my runs; $(rm)"]
    assert "jobs/select_subgroups.py" in shell_command("select")
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ims3"])
    assert Path(shlex.split(shell_command("runs"))[0]).name == "ims3"


def test_a_program_is_named_as_a_shell_finds_it(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name in ("python", "mlflow"):
        (tmp_path / "bin" / name).touch(mode=0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert installed_program("mlflow") == "bin/mlflow"
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    assert installed_program("mlflow") == "mlflow"


def test_the_directory_of_a_result_keeps_the_query_of_its_uri():
    directory, name = open_result("mock:///runs/score.json?a=b")
    assert (directory.uri, name) == ("mock:///runs?a=b", "score.json")


def test_an_ending_has_a_line_each_without_secrets():
    lines = result_lines({"evaluation": "s3://key:secret@bucket/e.json"})
    assert lines == ["evaluation     s3://***@bucket/e.json"]
