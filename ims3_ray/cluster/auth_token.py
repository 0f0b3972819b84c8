"""Keep Ray's authentication token private: with it, anyone can run code on the user's clusters.

Ray 2.60 creates ~/.ray/auth_token with the process's umask, which usually makes it readable to all users.
"""

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from ims3_ray.errors import InputError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
TOKEN_BYTES = 32  # the length that Ray accepts


def make_private_token() -> None:
    """Make sure that the token of a new local cluster exists, with mode 0600, in a folder of mode 0700.

    Does nothing if the user chose another token or no authentication. Raises InputError if the file cannot be
    written or its mode cannot be changed.
    """
    if os.environ.get(MODE, "token").lower() != "token" or {TOKEN, TOKEN_PATH} & set(os.environ):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(path.parent)
        if not path.exists():
            _create(path)
        _make_private(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be kept from other users ({error.strerror}); set its mode to 0600, or name "
            f"another file in {TOKEN_PATH}"
        ) from error


def _make_private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & OTHERS:
        path.chmod(mode & ~OTHERS)


def _create(path: Path) -> None:
    """Create the token atomically. If another driver has created it meanwhile, its token stays."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as file:  # mode 0600
        file.write(secrets.token_hex(TOKEN_BYTES))
        file.flush()
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
