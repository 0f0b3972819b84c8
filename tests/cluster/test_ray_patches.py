"""Ray's default for `uv run` is off unless the user asks for it."""

import subprocess
import sys

import pytest
from processes import environment

UV = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
DRIVER = """
import ray
from ims3_ray.cluster.resources import connect
connect()
print(ray.get_runtime_context().runtime_env.get("py_executable"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "starts"), [({}, "None"), ({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, "uv run")]
)
def test_uv_run_starts_no_worker_unless_asked(cluster_environment, tmp_path, chosen, starts):
    (tmp_path / "run").write_text(UV)  # which Ray takes for uv by its words
    done = subprocess.run(
        ["uv", "run", sys.executable, "-c", DRIVER],
        executable=sys.executable,
        cwd=tmp_path,
        env=environment() | cluster_environment | chosen,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(starts)
