"""Wait until the cluster has so many GPUs, which makes it grow, then become the given command.

    python cluster/with_gpus.py 4 python jobs/distill.py --recipe imagewoof …

A run sizes its actors to the devices that Ray sees when it starts; a cluster that has scaled down to its head shows none.
"""

import logging
import os
import sys

import ray
from ray.util import placement_group, remove_placement_group

WAIT_S = 1800  # the GPUs that have come cost money while the others are waited for
USAGE = "usage: with_gpus.py NUMBER COMMAND [ARGUMENT …]"


def wait_for_gpus(number: int) -> None:
    """Return once `number` GPUs are free, and free they stay. Raises ray.exceptions.GetTimeoutError after WAIT_S."""
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    group = placement_group([{"GPU": 1}] * number)
    ray.get(group.ready(), timeout=WAIT_S)
    remove_placement_group(group)
    ray.shutdown()


def main(arguments: list[str]) -> str | None:
    """Does not return where it succeeds, else gives what to say."""
    if len(arguments) < 2 or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        return f"{USAGE}; got {' '.join(arguments) or 'nothing'}"
    if not os.environ.get("RAY_ADDRESS"):
        return "RAY_ADDRESS: names no cluster; submit this with `ray job submit`"
    try:
        wait_for_gpus(int(arguments[0]))
    except ray.exceptions.GetTimeoutError:
        return f"{arguments[0]} GPUs: not there after {WAIT_S} s; ask for fewer, or raise the cluster's maximum of workers"
    os.execvp(arguments[1], arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
