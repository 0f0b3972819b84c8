"""Malformed and unreachable addresses, and GPUs that are missing, are bad input with its field."""

import pytest
import ray
from processes import environment, python
from raylets import free_port

from ims3_ray.cluster import resources
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://head:8265", "is no address"),
        ("nowhere.invalid:6379", "no answer"),
        ("127.0.0.1:{free}", "no answer from 127.0.0.1"),
    ],
)
def test_an_address_without_a_cluster_is_reported_before_ray_starts(address, expected, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address.format(free=free_port()))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    with pytest.raises(InputError, match=f"RAY_ADDRESS: .*{expected}"):
        resources.connect()


def test_a_long_path_for_rays_sockets_is_an_error_with_the_remedy(tmp_path):
    connect = "from ims3_ray.cluster.resources import connect; connect()"
    error = python(connect, env=environment() | {"RAY_TMPDIR": f"{tmp_path}/{'x' * 80}"}).stderr
    assert "; set RAY_TMPDIR to a short" in error


def test_local_is_no_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert not resources.has_address()


def test_missing_gpus_are_an_error_with_the_present_number(ray_cluster):
    there = int(ray_cluster.cluster_resources().get("GPU", 0))
    with pytest.raises(InputError, match=rf"^workers.gpus: .* {there} of {there + 1} "):
        resources.find_machine(Workers(gpus=there + 1, wait_s=1))
