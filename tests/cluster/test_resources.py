"""Malformed and unreachable addresses of a cluster are reported at once."""

import socket

import pytest
import ray

from ims3_ray.cluster import resources
from ims3_ray.errors import InputError


def closed_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("nonsense", "is no address; write HOST:PORT"),
        ("http://head:8265", "is no address"),
        ("head:99999", "no answer"),
        ("nowhere.invalid:6379", "no answer"),
        (f"127.0.0.1:{closed_port()}", "no answer from 127.0.0.1"),
    ],
)
def test_an_address_without_a_cluster_is_reported_before_ray_starts(address, expected, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    with pytest.raises(InputError, match=f"RAY_ADDRESS: .*{expected}"):
        resources.connect()
