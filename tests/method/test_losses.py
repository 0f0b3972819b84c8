import math

import pytest
import torch
from tiny_generator import draw

from ims3_ray.method import ddim, losses
from ims3_ray.method.schedule import alphas_bar

ABAR = alphas_bar()


def test_matching_pairs_each_image_with_its_own_inversion_and_ignores_the_norm():
    a = draw(3, 4, 2, 2)
    assert losses.matching_loss(a, 3 * a).abs().max() < 1e-6
    assert losses.matching_loss(a, a.roll(1, 0)).min() > 0.1


def test_a_prediction_at_the_inversions_level_has_its_noise_and_equals_it_if_x0_is_right():
    z0, clean, inverted, abar = (
        draw(3, 4, 2, 2),
        draw(3, 4, 2, 2, seed=1),
        draw(3, 4, 2, 2, seed=2),
        ABAR[400],
    )
    noise = (inverted - abar.sqrt() * z0) / (1 - abar).sqrt()
    found = losses.at_level_of(inverted, clean, z0, abar=abar)
    torch.testing.assert_close(found, ddim.add_noise(clean, noise, abar=abar))
    assert torch.equal(losses.at_level_of(inverted, z0, z0, abar=abar), inverted)


def test_masked_mean_does_not_depend_on_the_split():
    values, mask = torch.arange(8.0), torch.tensor([1, 0, 1, 1, 0, 0, 1, 1]).bool()
    whole = losses.masked_mean(values, mask, 5)
    parts = sum(losses.masked_mean(values[i : i + 2], mask[i : i + 2], 5) for i in range(0, 8, 2))
    assert whole == parts == values[mask].mean()
    assert losses.masked_mean(values, torch.zeros(8).bool(), 0) == 0


def test_variational_loss_trains_only_the_variance():
    output, t = draw(2, 8, 2, 2).requires_grad_(), torch.tensor([300, 300])
    losses.variational_loss(output, draw(2, 4, 2, 2), draw(2, 4, 2, 2, seed=1), t, ABAR).sum().backward()
    assert output.grad[:, :4].abs().max() == 0
    assert output.grad[:, 4:].abs().min() > 0


class Published:
    """A batch of four and a model. The values below are the published code's, in float64."""

    def __init__(self):
        k = torch.arange(32, dtype=torch.float64).view(4, 2, 2, 2)
        self.z0, self.eps = 1.5 * torch.sin(1.3 * k), 1.2 * torch.cos(0.7 * k)
        self.t, self.labels = torch.tensor([1, 250, 700, 999]), torch.tensor([0, 1, 1, 0])
        self.z_t = ddim.add_noise(self.z0, self.eps, abar=ddim.abar_at(ABAR, self.t, torch.float64))
        self.gain = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        self.output = self.predict(self.z_t, self.t, self.labels)

    def predict(self, z, timesteps, labels):
        shift = ((timesteps.double() / 300).cos() + 0.1 * labels.double())[:, None, None, None]
        return torch.cat([self.gain * z + 0.2 * shift, 0.5 * torch.sin(z) * self.gain], dim=1)

    def pair(self):
        labels = torch.tensor([2, 1, 1, 0])  # the inversion's own
        noise = self.output[:, :2]
        return losses.one_step_pair(self.predict, self.z0, self.z_t, noise, self.t, labels, ABAR)


def assert_published(values, expected, atol=0.0):
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=atol)


def test_diffusion_and_variational_loss_equal_the_published_code():
    published = Published()
    diffusion = losses.diffusion_loss(published.output[:, :2], published.eps)
    assert_published(diffusion, [1.0163051, 0.51269995, 0.0570725011, 0.0757109803])
    variational = losses.variational_loss(published.output, published.z_t, published.z0, published.t, ABAR)
    assert_published(variational, [0.598194778, 0.0039589321, 0.000590488938, 0.00111461527])


def test_one_step_target_and_its_gradient_equal_the_published_code():
    published = Published()
    below, above = published.pair()
    assert_published(below[:, 0, 0, 0], [0.0160636622, -0.253111669, 0.358380618, -0.547540883], 1e-8)
    assert_published(above[:, 0, 0, 0], [0.000993103692, -1.241661163, 1.392671737, -0.327738242], 1e-8)
    loss = losses.all_pairs_loss(below, above).mean()
    assert loss.item() == pytest.approx(0.98705069, rel=1e-7)
    (slope,) = torch.autograd.grad(loss, published.gain)
    assert slope.item() == pytest.approx(-2.67653041e-6, rel=1e-6)


def test_minimax_losses_take_the_extreme_over_the_memory():
    z = torch.eye(4).view(4, 1, 2, 2)
    predicted = z[:1] + 0.5 * z[1:2]
    cosines = torch.tensor([1, 0.5, 0, 0]) / math.sqrt(1.25)
    torch.testing.assert_close(losses.representativeness_loss(predicted, z[:2]), 1 - cosines[1:2])
    torch.testing.assert_close(losses.diversity_loss(predicted, z), cosines[:1])
