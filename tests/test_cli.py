"""Exit codes and last lines of commands, and shell completion."""

import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version

import pytest
from processes import environment, job

from ims3_ray.cli import COMMANDS, main

PRINTS = """
import sys
from ims3_ray.cli import guarded
code = guarded(lambda: [print("x" * 999) for _ in range(999)])
print(code, file=sys.stderr)
"""


def test_a_closed_pipe_is_no_failure():
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    process = subprocess.Popen([sys.executable, "-c", PRINTS], **options)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "141\n"


def test_python_m_is_the_command_and_prints_its_usage(capsys):
    def started(*words):
        process = [sys.executable, "-m", "ims3_ray", *words]
        return subprocess.run(process, capture_output=True, text=True, env=environment())

    bare = started()
    assert bare.returncode == main([]) == 2
    assert bare.stdout == capsys.readouterr().out
    assert all(f"\n  {name} " in bare.stdout for name in COMMANDS)
    assert max(map(len, bare.stdout.splitlines())) <= 80
    unknown = started("distil")
    assert (unknown.returncode, "mean distill?" in unknown.stderr) == (2, True)
    assert started("--version").stdout == f"ims3 {version('ims3-ray')}\n"


COMPLETE = """
source "$0"
complete() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_ims3; echo "${COMPREPLY[*]}"; }
complete ims3 dis
complete ims3 distill --dry
complete ims3 distill sample.subg
complete ims3 distill --recipe imagewoof-p
"""


def test_bash_completes_commands_options_fields_and_recipes(tmp_path, output):
    (tmp_path / "ims3.bash").write_text(output("--print-completion", "bash"))
    printed = subprocess.run(["bash", "-c", COMPLETE, tmp_path / "ims3.bash"], capture_output=True, text=True)
    assert printed.stdout.split() == ["distill", "--dry-run", "sample.subgroups=", "imagewoof-published"]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "wait_s"), [("encode", 0), ("finetune", 8)])
def test_sigterm_stops_a_run_with_one_line_and_exit_code_143(tiny_overrides, stage, wait_s):
    process = job("distill", *tiny_overrides, "finetune.epochs=2000")

    def stop():
        for line in process.stdout:
            if f"] {stage} " in line:
                time.sleep(wait_s)  # fine-tuning is under way then, and the driver waits in ray.get
                process.send_signal(signal.SIGTERM)

    reader = threading.Thread(target=stop)
    reader.start()
    err = process.stderr.read()
    reader.join()
    assert process.wait(120) == 143, err
    assert "SIGTERM received" not in err
    assert err.splitlines()[-1] == "stopped; run the same command again to go on"
