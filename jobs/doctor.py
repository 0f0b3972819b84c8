import sys

from ims3_ray.cli import job

if __name__ == "__main__":
    sys.exit(job("doctor"))
