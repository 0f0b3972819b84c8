"""The least of affinity, cgroups and Slurm decides how many workers start."""

import os

import psutil
import pytest

from ims3_ray.cluster.resources import local_resources
from ims3_ray.config import allocation
from ims3_ray.config.settings import Workers


@pytest.fixture(autouse=True)
def groups(tmp_path, monkeypatch):
    """Cgroups /job/step without limits, on a node of 64 cores and 256 GB."""
    for name in ("SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "own").write_text("4:memory:/old\n0::/job/step\n")
    monkeypatch.setattr(allocation, "CGROUPS", tmp_path)
    monkeypatch.setattr(allocation, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    memory = psutil.virtual_memory()._replace(total=256 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return tmp_path / "job"


def test_without_limits_the_whole_node_is_granted(groups):
    (groups / "step" / "cpu.max").write_text("max 100000\n")
    (groups / "memory.max").write_text("max\n")
    assert (allocation.granted_cpus(), allocation.granted_memory()) == (64, 256 * 10**9)
    assert local_resources(Workers()) == {"num_cpus": 64}


def test_the_least_limit_counts(groups, monkeypatch):
    (groups / "cpu.max").write_text("1600000 100000\n")
    (groups / "memory.max").write_text("64000000000\n")
    assert (allocation.granted_cpus(), allocation.granted_memory()) == (16, 64 * 10**9)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "4096")
    assert (allocation.granted_cpus(), allocation.granted_memory()) == (8, 8 * 2**32)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # no limit
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert allocation.granted_cpus() == 3


def test_a_started_cluster_stays_within_what_is_granted(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(32 * 1024))
    resources = local_resources(Workers())
    assert resources["num_cpus"] == 8
    assert resources["object_store_memory"] + resources["_memory"] < 32 * 2**30
    assert local_resources(Workers(cpus=4))["num_cpus"] == 4
