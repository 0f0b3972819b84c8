import pytest
import torch

from ims3_ray.method import ddim
from ims3_ray.method.guidance import guidance_step, switch_predictor, transport, transport_plan
from ims3_ray.method.schedule import alphas_bar, space_timesteps

ABAR, STEPS = alphas_bar(), space_timesteps(50)
LABELS = torch.zeros(4, dtype=torch.int64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@ddim.broadcast_timestep
def gaussian(z, timesteps, labels):
    """The exact noise prediction for standard normal data."""
    return z * (1 - ddim.abar_at(ABAR, timesteps)).sqrt()


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_stronger_guidance_ends_nearer_to_the_anchors_and_zero_changes_nothing(sampler):
    anchors = 2 * draw(4, 3, 2, 2, seed=3)

    def distance(guidance):
        noise = torch.Generator().manual_seed(2)
        step = ddim.ddim_stepper
        if sampler == "ancestral":
            step = ddim.ancestral_stepper(STEPS, lambda: torch.randn(4, 3, 2, 2, generator=noise))
        z = ddim.sample(step, gaussian, draw(4, 3, 2, 2, seed=1), LABELS, STEPS, ABAR, guidance)
        return float((z - anchors).norm())

    zero, weak, strong = (
        distance(guidance_step(lambda x0: anchors, strength=strength, interval=(0, 999)))
        for strength in (0.0, 0.05, 0.1)
    )
    assert zero == distance(None)
    assert zero > 1.1 * weak > 1.2 * strong


def test_guidance_step_is_strength_times_deviation_within_its_interval_only():
    x0, anchors = draw(2, 3, 2, 2), draw(2, 3, 2, 2, seed=1)
    guidance = guidance_step(lambda x0: anchors, strength=0.2, interval=(500, 999))
    deviation = ((1 - 0.2 / 0.3) * (1 - 0.3) / (1 - 0.2)) ** 0.5
    for t, share in ((500, 0.2), (999, 0.2), (499, 0.0)):
        moved = guidance(x0, t, torch.tensor(0.2), torch.tensor(0.3))
        torch.testing.assert_close(moved, share * deviation * (anchors - x0))


def test_transport_plan_has_the_masses_of_both_sides():
    masses = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.5, 0.5, 0.0]])
    plan = transport_plan(draw(3, 6, 3).abs(), masses, iterations=500)
    torch.testing.assert_close(plan.sum(dim=2), torch.full((3, 6), 1 / 6))
    torch.testing.assert_close(plan.sum(dim=1), masses)
    assert plan[2, :, 2].abs().max() == 0


def test_transport_plan_with_small_epsilon_is_the_cheapest_assignment():
    """The nearest anchor of every image is the first; equal masses make the plan a permutation."""
    cost = torch.tensor([[[0.0, 1.0, 2.0], [0.1, 0.5, 2.0], [0.2, 0.9, 1.2]]])
    plan = transport_plan(cost, torch.full((1, 3), 1 / 3), epsilon=0.005, iterations=500)
    torch.testing.assert_close(3 * plan[0], torch.eye(3), atol=1e-3, rtol=0)


def test_transport_follows_the_negative_gradient_of_its_cost():
    """−∇ W_ε = 2/(n d) (target − x̂0); for points this close, five iterations find the plan."""
    x0, anchors = 0.2 * draw(5, 3, 2, 2).double(), 0.2 * draw(1, 4, 3, 2, 2, seed=1).double()
    masses = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).double()
    x = x0.clone().requires_grad_()
    cost = (x.reshape(1, 5, 1, -1) - anchors.reshape(1, 1, 4, -1)).square().mean(dim=-1)
    plan = transport_plan(cost, masses, iterations=500)
    (gradient,) = torch.autograd.grad((plan * cost).sum() + 0.1 * (plan * plan.log()).sum(), x)
    target = transport(anchors, masses, set_size=5)(x0)
    torch.testing.assert_close(-gradient, 2 / (5 * 12) * (target - x0), atol=1e-5, rtol=1e-3)


def test_transport_of_a_set_does_not_depend_on_its_place_in_the_batch():
    x0, anchors = draw(8, 3, 2, 2), draw(2, 4, 3, 2, 2, seed=1)
    masses = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    moved = transport(anchors, masses, set_size=3)(x0)
    swapped = transport(anchors.flip(0), masses.flip(0), set_size=3)(x0[[3, 4, 5, 0, 1, 2, 7, 6]])
    assert torch.equal(moved[:6], swapped[[3, 4, 5, 0, 1, 2]])
    assert torch.equal(moved[6:], x0[6:])
    assert not torch.equal(moved[:6], x0[:6])


def test_predictor_is_switched_at_the_ends_of_the_interval():
    predict = switch_predictor((200, 600), inside=lambda *_: torch.ones(1), outside=lambda *_: torch.zeros(1))
    assert [predict(draw(4, 3, 2, 2), t, LABELS) for t in (199, 200, 600, 601)] == [0, 1, 1, 0]
