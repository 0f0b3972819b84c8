"""A local cluster is closed to other users: the token's mode bits, and where Ray's servers listen."""

import json
import os
import stat
import sys

import pytest
from processes import environment, python
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from ims3_ray.cluster.auth_token import MODE, TOKEN, TOKEN_PATH, make_private_token

START = """
import json, psutil, ray
from ims3_ray.cluster.resources import connect
connect()
assert ray.get(ray.remote(num_cpus=0)(lambda: 3).remote()) == 3
own = [psutil.Process(), *psutil.Process().children(recursive=True)]
sockets = [c for process in own for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
print(json.dumps([list(c.laddr) for c in sockets]))
ray.shutdown()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, the usual umask, and no token in the environment."""
    for name in (MODE, TOKEN, TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


@pytest.fixture
def modes(home):
    """Reads the permission bits of Ray's folder and token, None for what is missing."""
    paths = (home / ".ray", home / ".ray" / "auth_token")
    return lambda: [stat.S_IMODE(path.stat().st_mode) if path.exists() else None for path in paths]


def test_a_new_token_is_its_users_alone_and_stays(modes, home):
    make_private_token()
    assert modes() == [0o700, 0o600]
    token = (home / ".ray" / "auth_token").read_text()
    assert len(bytes.fromhex(token)) == 32
    make_private_token()
    assert {path.name: path.read_text() for path in (home / ".ray").iterdir()} == {"auth_token": token}


def test_a_token_that_others_could_read_is_closed_to_them(modes, home):
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o755)
    token.write_text("ab" * 32)
    assert modes() == [0o755, 0o644]
    make_private_token()
    assert (modes(), token.read_text()) == ([0o700, 0o600], "ab" * 32)


@pytest.mark.parametrize("chosen", [{TOKEN: "ab" * 32}, {TOKEN_PATH: "/x"}, {MODE: "disabled"}])
def test_no_token_is_made_if_the_user_chose_otherwise(modes, monkeypatch, chosen):
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    make_private_token()
    assert modes() == [None, None]


@pytest.mark.slow
def test_every_server_of_a_local_cluster_listens_on_loopback(modes):
    done = python(START, env=environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}, timeout=300)
    assert done.returncode == 0, done.stderr
    addresses = json.loads(done.stdout.splitlines()[-1])
    assert len(addresses) > 5
    assert {address.removeprefix("::ffff:") for address, _ in addresses} == {"127.0.0.1"}
    assert DEFAULT_DASHBOARD_AGENT_LISTEN_PORT not in {port for _, port in addresses}  # `ray start` needs it
    assert modes() == [0o700, 0o600]
