"""What shells complete: by a real bash on a terminal, a key at a time."""

import os
import pty
import re
import shutil
import subprocess

import pytest

from ims3_ray.cli import main

TYPED = {  # keys → the words that ims3 is given
    "ims3 dis\t--dry\t\n": "distill --dry-run",
    "ims3 distill sample.subg\t20\n": "distill sample.subgroups=20",
    "ims3 distill --recipe imagewoof-p\t\n": "distill --recipe imagewoof-published",
    "ims3 distill --recipe my-o\t\n": "distill --recipe my-own.yaml",
    "ims3 evaluate data.train=my-im\t sele\t\n": "evaluate data.train=my-images/ sele",  # which takes none
    "ims3 evaluate evaluate.prot\tquick\n": "evaluate evaluate.protocol=quick",
    "ims3 doctor --sh\tdigits-p\t\n": "doctor --show digits-paper",
    "ims3 push stor\t\n": "push storage=",
}


@pytest.fixture
def bash(tmp_path, capsys):
    """Types keys into a bash that completes; gives what it printed."""
    main(["completion", "bash"])
    (tmp_path / "ims3.bash").write_text(capsys.readouterr().out)
    (tmp_path / "my-own.yaml").touch()
    (tmp_path / "my-images").mkdir()

    def typed(keys):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [shutil.which("bash"), "--noprofile", "--norc", "-i"],
            cwd=tmp_path,
            env=os.environ | {"TERM": "dumb", "INPUTRC": os.devnull, "PATH": "/nowhere"},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        os.write(ours, b"source ims3.bash; ims3() { printf '<%s>\\n' \"$*\"; }\n")
        os.write(ours, f"{keys}exit\n".encode())
        said = process.communicate(timeout=60)[0].decode()
        os.close(ours)
        return said

    return typed


def test_bash_completes_commands_options_recipes_fields_and_files(bash):
    said = bash("".join(TYPED))
    assert re.findall(r"<(.*)>", said) == list(TYPED.values())
