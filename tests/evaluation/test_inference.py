"""The forward pass as a device runs it: the same network, whatever it runs in."""

import logging

import pytest
import safetensors.torch
import torch

from ims3_ray.evaluation import inference, probes
from ims3_ray.evaluation.inference import COMPILED_FROM, forward_fn, numerics_for
from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.models.classifiers import build
from ims3_ray.models.device import Numerics


def _network(name="convnet3"):
    return build(name, 3, 64, torch.Generator().manual_seed(0), width=8)


def _images() -> torch.Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_a_cpu_runs_the_network_as_it_is_however_long_it_trains():
    model = _network()
    for steps in (1, 10 * COMPILED_FROM):
        assert forward_fn(model, numerics_for("cpu", steps)) is model


@pytest.mark.parametrize("name", ["convnet3", "resnetap10", "resnet18"])
def test_bf16_gives_float32_logits_and_gradients_near_fp32s(name):
    x, gradients, logits = _images(), [], []
    for precision in ("fp32", "bf16"):
        model = _network(name)
        found = forward_fn(model, Numerics("cpu", precision))(x)
        found.square().mean().backward()
        assert found.dtype == torch.float32
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
        logits.append(found.detach()), gradients.append(model.fc.weight.grad)
    for fp32, bf16 in (logits, gradients):
        assert not torch.equal(fp32, bf16)
        assert (fp32 - bf16).norm() < 0.05 * fp32.norm()


def test_checkpoints_can_be_saved_although_a_gpu_trains_channels_last(monkeypatch):
    monkeypatch.setattr(probes, "numerics_for", lambda kind, steps: Numerics(kind, "bf16"))
    rules = get_protocol("smoke")
    train = torch.zeros(12, 3, *[rules.image_size] * 2, dtype=torch.uint8), torch.arange(12) % 3
    states = dict(probes.train_checkpoints(train, rules, 3, -2, [0, 1], "cpu"))
    assert all(safetensors.torch.save(state) for state in states.values())


def test_a_missing_gpu_feature_is_logged_once_and_the_others_are_kept(monkeypatch, caplog):
    def lacking(wanted):
        return Numerics(wanted.device, wanted.precision), ["model.compile: (no compiler)"]

    monkeypatch.setattr(inference, "supported_numerics", lacking)
    inference._gpu_numerics.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            found = [numerics_for("cuda", COMPILED_FROM) for _ in range(3)]
    finally:
        inference._gpu_numerics.cache_clear()
    assert found == [Numerics("cuda", "bf16")] * 3
    assert [record.message for record in caplog.records] == ["evaluation: (no compiler)"]
