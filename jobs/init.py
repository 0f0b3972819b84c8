import sys

from ims3_ray.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("init", sys.argv[1:]))
