"""Refinement in plain torch: statistics, optimisation and memory."""

import math

import pytest
import torch
from torch import nn

from ims3_ray.method.packing import cut, unpack
from ims3_ray.method.refine import (
    OBJECTIVES,
    Match,
    Refinement,
    absolute_distance,
    decode_in_chunks,
    embedding_mean,
    filter_distance,
    gradient_distance,
    loss_gradients,
)
from ims3_ray.method.seeding import generator
from ims3_ray.models.classifiers import build


@pytest.fixture
def probe():
    return build("convnet3", 3, 16, generator("probe"), width=4)


def images(count, *key):
    return torch.rand(count, 3, 16, 16, generator=generator("images", *key))


def refinement(objective="gradients", **values):
    settings = {"steps": 20, "lr": 0.02, "views": 1, "chunk": 8, "decode": lambda z: z}
    settings |= {"view": lambda x, _: x, "objective": OBJECTIVES[objective]}
    return Refinement(**settings | values)


def matching(objective, probe, real, label=1):
    target = OBJECTIVES[objective].measure(probe, real, label, differentiable=False)
    detached = [x.detach() for x in target]
    return lambda step: Match(probe, detached, generator("draws", step))


def test_loss_gradients_exclude_biases_of_convolutions(probe):
    x = images(4)
    nn.functional.cross_entropy(probe(x), torch.tensor([2] * 4)).backward()
    biases = {f"body.{i}.bias" for i in (0, 4, 8)}
    expected = [p.grad for name, p in probe.named_parameters() if name not in biases]
    torch.testing.assert_close(loss_gradients(probe, x, 2, differentiable=False), expected)


def test_gradient_distance_is_0_for_one_direction_and_2_per_layer_for_opposite_ones(probe):
    ours = loss_gradients(probe, images(4), 0, differentiable=False)
    assert gradient_distance(ours, [3 * g for g in ours]).item() == pytest.approx(0, abs=1e-5)
    assert gradient_distance(ours, [-g for g in ours]).item() == pytest.approx(2 * len(ours), abs=1e-4)


def test_filter_distance_compares_each_filter_and_ignores_vectors(probe):
    ours = loss_gradients(probe, images(4), 0, differentiable=False)
    filters = sum(len(g) for g in ours if g.dim() > 1)
    scaled = [g * torch.arange(1.0, len(g) + 1).reshape(-1, *[1] * (g.dim() - 1)) for g in ours]
    assert filter_distance(ours, scaled).item() == pytest.approx(0, abs=1e-4)
    assert filter_distance(ours, [-g for g in ours]).item() == pytest.approx(2 * filters, abs=1e-3)
    turned = [-g if g.dim() == 1 else g for g in ours]
    assert filter_distance(ours, turned).item() == pytest.approx(0, abs=1e-4)


def test_absolute_distance_counts_the_length_of_gradients(probe):
    ours = loss_gradients(probe, images(4), 0, differentiable=False)
    size = sum(g.abs().sum().item() for g in ours)
    assert absolute_distance(ours, ours).item() == 0
    assert absolute_distance(ours, [3 * g for g in ours]).item() == pytest.approx(2 * size, rel=1e-4)


def test_the_mean_of_the_embedding_is_exact_and_removes_its_hook(probe):
    x = images(5)
    (mean,) = embedding_mean(probe, x, 0, differentiable=False)
    torch.testing.assert_close(mean, probe.features(x).mean(0))
    assert not any(module._forward_pre_hooks for module in probe.modules())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_refinement_reduces_the_distance_to_real_images(probe, objective):
    losses = []
    match = matching(objective, probe, images(30, "real"))
    refinement(objective).run(images(2, "start"), 1, match, losses.append)
    assert losses[-1] < 0.8 * losses[0]


def test_views_are_drawn_from_the_steps_generator(probe):
    drawn = []

    def view(x, generator):
        drawn.append(torch.rand((), generator=generator).item())
        return x

    match = matching("gradients", probe, images(9, "real"))
    for _ in range(2):
        refinement(view=view, views=2, steps=3).run(images(2), 1, match)
    assert len(set(drawn)) == 6
    assert drawn[:6] == drawn[6:]


def test_decoding_in_chunks_keeps_the_gradient_and_holds_one_chunk_at_a_time():
    weight, sizes = torch.randn(3, 4, generator=generator("decoder")), list[int]()

    def decode(z):
        sizes.append(len(z))
        return torch.tanh(torch.einsum("ok,nkhw->nohw", weight, z))

    leaf = torch.randn(5, 4, 16, 16, generator=generator("z")).requires_grad_()
    gradients = []
    for chunk in (5, 2):
        decoded, backward = decode_in_chunks(decode, leaf, chunk)
        loss = (decoded.square() * torch.arange(5.0).view(5, 1, 1, 1)).sum()
        gradients.append(backward(torch.autograd.grad(loss, decoded)[0]))
    torch.testing.assert_close(*gradients)
    assert sizes == [5, 2, 2, 1, 2, 2, 1]


def test_decoder_without_gradient_is_refused(probe):
    match = matching("gradients", probe, images(9, "real"))
    with pytest.raises(ValueError, match="decode: "):
        refinement(decode=lambda z: z * 0).run(images(2), 1, match)


def test_clamped_pixels_stay_in_their_range(probe):
    start, match = images(2, "start").round(), matching("gradients", probe, images(30, "real"))
    free, clamped = (refinement(clamp=clamp, lr=0.2).run(start, 1, match) for clamp in (False, True))
    assert free.min() < 0
    assert free.max() > 1
    assert clamped.min() == 0
    assert clamped.max() == 1


def test_packed_images_move_by_the_gradients_of_all_their_tiles(probe):
    start, match = images(2, "start"), matching("embeddings", probe, images(30, "real"))
    shape = {"decode": lambda z: unpack(z, 2, 16), "chunk": 1}
    moved = refinement("embeddings", **shape).run(start, 1, match)
    changed = cut((moved - start).abs(), 2).amax(dim=(1, 2, 3))
    assert len(changed) == 8
    assert changed.min() > 1e-3
    together = refinement("embeddings", **shape | {"chunk": 2}).run(start, 1, match)
    torch.testing.assert_close(moved, together)


def test_second_derivatives_pass_the_pooling(probe):
    x = images(2).double().requires_grad_()
    double = probe.double()

    def norms(x):
        loss = nn.functional.cross_entropy(double(x), torch.tensor([1, 1]))
        return sum(
            g.square().sum() for g in torch.autograd.grad(loss, double.parameters(), create_graph=True)
        )

    (gradient,) = torch.autograd.grad(norms(x), x)
    direction = torch.randn(x.shape, generator=generator("direction"), dtype=torch.float64)
    step = 1e-6 / math.sqrt(x.numel())
    with torch.enable_grad():
        above, below = (norms((x + s * direction).detach()).item() for s in (step, -step))
    assert (gradient * direction).sum().item() == pytest.approx((above - below) / (2 * step), rel=1e-4)
