"""A local cluster is closed to other users: the token's mode bits, and where Ray's servers listen."""

import json
import os
import stat
import subprocess
import sys

import pytest

MAKE = "from ims3_ray.cluster.auth_token import make_private_token; make_private_token()"
START = """
import json, psutil, ray
from ims3_ray.cluster.machine import connect
connect()
assert ray.get(ray.remote(num_cpus=0)(lambda: 3).remote()) == 3
own = [psutil.Process(), *psutil.Process().children(recursive=True)]
sockets = [c for process in own for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
print(json.dumps([c.laddr.ip for c in sockets]))
ray.shutdown()
"""


@pytest.fixture
def python(tmp_path):
    """Runs Python code with its home below `tmp_path` and the usual umask; gives the process."""

    def run(code, **variables):
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        environment = inherited | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)} | variables
        words = [sys.executable, "-c", code]
        return subprocess.run(
            words, env=environment, umask=0o022, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture
def modes(tmp_path):
    """Reads the permission bits of Ray's folder and token, None for what is missing."""
    paths = (tmp_path / ".ray", tmp_path / ".ray" / "auth_token")
    return lambda: [stat.S_IMODE(path.stat().st_mode) if path.exists() else None for path in paths]


def test_a_new_token_is_its_users_alone_and_stays(python, modes, tmp_path):
    assert python(MAKE).returncode == 0
    assert modes() == [0o700, 0o600]
    token = (tmp_path / ".ray" / "auth_token").read_text()
    assert len(bytes.fromhex(token)) == 32
    assert python(MAKE).returncode == 0
    assert (tmp_path / ".ray" / "auth_token").read_text() == token
    assert os.listdir(tmp_path / ".ray") == ["auth_token"]


def test_a_token_that_others_could_read_is_closed_to_them(python, modes, tmp_path):
    (tmp_path / ".ray").mkdir(mode=0o755)
    (tmp_path / ".ray" / "auth_token").write_text("ab" * 32)
    assert modes() == [0o755, 0o644]
    assert python(MAKE).returncode == 0
    assert modes() == [0o700, 0o600]
    assert (tmp_path / ".ray" / "auth_token").read_text() == "ab" * 32


@pytest.mark.parametrize(
    "chosen", [{"RAY_AUTH_TOKEN": "ab" * 32}, {"RAY_AUTH_TOKEN_PATH": "/x"}, {"RAY_AUTH_MODE": "disabled"}]
)
def test_no_token_is_made_if_the_user_chose_otherwise(python, modes, chosen):
    assert python(MAKE, **chosen).returncode == 0
    assert modes() == [None, None]


@pytest.mark.slow
def test_every_server_of_a_local_cluster_listens_on_loopback(python, modes):
    done = python(START)
    assert done.returncode == 0, done.stderr
    addresses = json.loads(done.stdout.splitlines()[-1])
    assert len(addresses) > 5
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert modes() == [0o700, 0o600]
