"""Ray's workers in tests fork from the product's fork server: a start takes 0.2 s, not 8 s.

The raylet runs this file where it would run Ray's own `setup_worker.py`.
"""

import argparse
import contextlib
import json
import os
import shlex

COMMAND = "TESTS_START_WORKER"


@contextlib.contextmanager
def workers():
    """A cluster that this process starts in the block has such workers."""
    import pytest
    from ray._private.parameter import RayParams

    from ims3_ray.cluster import fork_server

    plain = RayParams.__init__

    def init(self, *args, **options):
        plain(self, *args, **options)
        self.setup_worker_path = __file__

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RayParams, "__init__", init)
        patched.setenv(COMMAND, fork_server.start())
        patched.setenv("RAY_worker_register_timeout_seconds", "300")  # the first waits for the imports
        patched.setenv("RAY_worker_niceness", "0")
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context")
    parser.add_argument("--language")
    known, words = parser.parse_known_args()
    context = json.loads(known.serialized_runtime_env_context or "{}")
    while words[0] in ("-s", "-S"):
        del words[0]
    command = [*shlex.split(os.environ[COMMAND]), *words]
    os.execve(command[0], command, dict(os.environ) | context.get("env_vars", {}))


if __name__ == "__main__":
    main()
