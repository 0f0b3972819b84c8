import os
import sys

# This folder's select.py would hide Python's own module of that name.
sys.path = [p for p in sys.path if p != os.path.dirname(os.path.realpath(__file__))]

from ims3_ray.cli import run_command  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_command("sweep", sys.argv[1:]))
