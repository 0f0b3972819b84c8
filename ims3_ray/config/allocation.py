"""CPU cores and memory that a scheduler grants to this process on its node: affinity, cgroup v2, Slurm.

Ray counts the node's cores and memory, and starts as many workers, also in a job that has a share of them.
Not in `cluster`, since commands read this before they import Ray.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MIB = 2**20


def granted_cpus() -> int:
    """Return the least of the affinity, the cgroups' quotas, and the Slurm job's cores on the node."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    quotas = (text.split() for text in _limits("cpu.max"))
    counts += [int(quota) // int(period) for quota, period in quotas if quota != "max"]
    counts += _slurm("SLURM_CPUS_ON_NODE")
    return max(1, min(counts))


def granted_memory() -> int:
    """Return the least of the node's memory, its cgroups' limits and the Slurm job's, in bytes."""
    sizes = [psutil.virtual_memory().total]
    sizes += [int(text) for text in _limits("memory.max") if text != "max"]
    sizes += [size * MIB for size in _slurm("SLURM_MEM_PER_NODE")]
    sizes += [size * MIB * granted_cpus() for size in _slurm("SLURM_MEM_PER_CPU")]
    return min(sizes)


def _limits(name: str) -> Iterator[str]:
    """Yield a limit of this process's cgroup and of those that contain it, without line ends."""
    try:
        own = next(line for line in OWN_CGROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):  # another system, or cgroup v1
        return
    folder = CGROUPS / own.removeprefix("0::").lstrip("/")
    for group in (folder, *folder.parents):
        if group.is_relative_to(CGROUPS) and (group / name).is_file():
            yield (group / name).read_text().strip()


def _slurm(variable: str) -> list[int]:
    """Return the value that Slurm states, if any; 0 means no limit."""
    value = os.environ.get(variable, "")
    return [int(value)] if value.isdecimal() and int(value) else []
