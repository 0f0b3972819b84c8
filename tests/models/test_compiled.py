"""Compilation and precision: what a device can't do is said and left out, what it can does not change the
model.
"""

import pytest
import torch

from ims3_ray.method import difffit
from ims3_ray.method.seeding import generator
from ims3_ray.models import device
from ims3_ray.models.device import Numerics, supported_numerics
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.finetuned import compile_blocks

CONFIG = DiTConfig(sample_size=4, hidden_size=32, depth=4, num_heads=2, num_classes=3)


@pytest.fixture(scope="module")
def can_compile():
    if told := supported_numerics(Numerics("cpu", "fp32", compiled=True))[1]:
        pytest.skip(told[0])


def pair():
    """The same small model twice, the second compiled."""
    models = [DiT(CONFIG).initialize(generator("compiled"), zero_outputs=False).eval() for _ in range(2)]
    for model in models:
        difffit.prepare(model)
    compile_blocks(models[1])
    return models


def inputs():
    return (
        torch.randn(3, 4, 4, 4, generator=generator("z")),
        torch.tensor([1, 500, 999]),
        torch.tensor([0, 2, 3]),
    )


@pytest.mark.slow
def test_compiled_blocks_give_what_the_blocks_give_and_the_same_bits_again(can_compile):
    plain, compiled = pair()
    with torch.inference_mode():
        first, again = (compiled(*inputs()) for _ in range(2))
        torch.testing.assert_close(first, plain(*inputs()), rtol=1e-4, atol=1e-5)
    assert torch.equal(first, again)


@pytest.mark.slow
def test_gradients_through_compiled_blocks_can_be_taken_term_by_term(can_compile):
    gradients = []
    for model in pair():
        parameters = [p for p in model.parameters() if p.requires_grad]
        out = model(*inputs())
        gradients += [  # one graph, twice, as a logging step does
            torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            for term in (out.square().mean(), out.mean())
        ]
    for plain, compiled in ((gradients[0], gradients[2]), (gradients[1], gradients[3])):
        for a, b in zip(plain, compiled, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_names_of_parameters_stay(can_compile):
    plain, compiled = pair()
    assert list(plain.state_dict()) == list(compiled.state_dict())


def test_where_compilation_fails_the_model_runs_as_it_is_and_it_is_said(monkeypatch):
    def refuse(function):
        raise RuntimeError("no compiler\nanywhere")

    monkeypatch.setattr(device.torch, "compile", refuse)
    found, told = supported_numerics(Numerics("cpu", "fp32", compiled=True))
    assert found == Numerics("cpu", "fp32", compiled=False)
    assert len(told) == 1
    assert "model.compile" in told[0]
    assert "no compiler anywhere" in told[0]


def test_where_bf16_is_missing_fp32_is_used_and_it_is_said(monkeypatch):
    monkeypatch.setattr(device.torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(device.torch.cuda, "get_device_name", lambda: "an old card")
    found, told = supported_numerics(Numerics("cuda", "bf16", compiled=False))
    assert found.precision == "fp32"
    assert "an old card" in told[0]


def test_where_there_are_no_graphs_the_model_runs_without_and_it_is_said():
    found, told = supported_numerics(Numerics("cpu", graphs=True))
    assert found == Numerics("cpu")
    assert told == [
        "model.cuda_graphs: CUDA graphs do not work here (a CPU has none); the model runs without"
    ]


def test_what_is_supported_is_not_spoken_of():
    assert supported_numerics(Numerics("cpu", "bf16")) == (Numerics("cpu", "bf16"), [])
