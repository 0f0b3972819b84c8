"""What a process is set to for its device."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from ims3_ray.models.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def fill():
    return [torch.ones(2**21) for _ in range(4)]  # 8 MiB each
for _ in range(3):
    fill()  # until the heap has its size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set")
def test_memory_of_freed_tensors_is_used_again_without_asking_the_system():
    pages = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("keep", "return")
    }
    assert pages["keep"] < pages["return"] / 4, pages  # 0 and 40,960 where nothing else runs
