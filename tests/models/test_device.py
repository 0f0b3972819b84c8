"""Device setup: reused memory; unsupported settings are reported; compilation does not change the model."""

import platform

import pytest
import torch
from processes import python

from ims3_ray.method import difffit
from ims3_ray.method.seeding import generator
from ims3_ray.models import device
from ims3_ray.models.device import Numerics, supported_numerics
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.finetuned import compile_blocks

CONFIG = DiTConfig(sample_size=4, hidden_size=32, depth=4, num_heads=2, num_classes=3)


@pytest.fixture(scope="module")
def can_compile():
    if problems := supported_numerics(Numerics("cpu", "fp32", compiled=True))[1]:
        pytest.skip(problems[0])


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
def test_compiled_blocks_equal_the_blocks_and_are_reproducible(can_compile):
    plain, compiled = pair()
    with torch.inference_mode():
        first, again = (compiled(*inputs()) for _ in range(2))
        torch.testing.assert_close(first, plain(*inputs()), rtol=1e-4, atol=1e-5)
    assert torch.equal(first, again)


@pytest.mark.slow
def test_gradients_of_compiled_blocks_can_be_taken_per_term(can_compile):
    gradients = []
    for model in pair():
        parameters = [p for p in model.parameters() if p.requires_grad]
        out = model(*inputs())
        gradients += [  # one graph twice, as in a logging step
            torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            for term in (out.square().mean(), out.mean())
        ]
    for plain, compiled in ((gradients[0], gradients[2]), (gradients[1], gradients[3])):
        for a, b in zip(plain, compiled, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_failing_compilation_is_disabled_and_reported(monkeypatch):
    def refuse(function):
        raise RuntimeError("no compiler\nanywhere")

    monkeypatch.setattr(device.torch, "compile", refuse)
    numerics, lines = supported_numerics(Numerics("cpu", "fp32", compiled=True))
    assert numerics == Numerics("cpu", "fp32", compiled=False)
    assert [line.partition(":")[0] for line in lines] == ["model.compile"]
    assert "no compiler anywhere" in lines[0]


def test_missing_bf16_falls_back_to_fp32_and_is_reported(monkeypatch):
    monkeypatch.setattr(device.torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(device.torch.cuda, "get_device_name", lambda: "an old card")
    numerics, lines = supported_numerics(Numerics("cuda", "bf16", compiled=False))
    assert numerics.precision == "fp32"
    assert "an old card" in lines[0]


def test_missing_cuda_graphs_are_disabled_and_reported():
    numerics, lines = supported_numerics(Numerics("cpu", graphs=True))
    assert numerics == Numerics("cpu")
    assert [line.partition(":")[0] for line in lines] == ["model.cuda_graphs"]


def test_supported_settings_are_not_reported():
    assert supported_numerics(Numerics("cpu", "bf16")) == (Numerics("cpu", "bf16"), [])


FAULTS = """
import resource, torch
from ims3_ray.models.device import prepare_device
prepare_device("cpu")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**24) for _ in range(4)]  # 64 MiB each: glibc maps blocks above 32 MiB by default
    written = sum(tensor.nbytes for tensor in tensors) // resource.getpagesize()
    del tensors
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / written
print(sorted(faults() for _ in range(25))[12])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set")
def test_freed_memory_is_reused_without_page_faults():
    ran = python(FAULTS, check=True)
    # median page faults per page of a tensor: 0 here, 1 without the setting
    assert float(ran.stdout) < 0.5, ran.stdout
