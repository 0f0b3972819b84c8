import math

import pytest
import torch

from ims3_ray.method import ddim, losses
from ims3_ray.method.schedule import alphas_bar

ABAR = alphas_bar()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_matching_compares_each_image_with_itself_alone():
    """The published code's cosine runs over all pairs of the batch: there a permutation of the inversions
    costs nothing.
    """
    stepped = draw(3, 4, 2, 2)
    assert losses.matching_loss(stepped, stepped).abs().max() < 1e-6
    assert losses.matching_loss(stepped, stepped.roll(1, 0)).min() > 0.1


def test_cosine_matching_ignores_the_norm_and_the_others_do_not():
    a = draw(2, 4, 2, 2)
    assert losses.matching_loss(a, 3 * a).abs().max() < 1e-6
    torch.testing.assert_close(losses.matching_loss(a, 3 * a, "l1"), (2 * a).abs().flatten(1).mean(1))
    torch.testing.assert_close(losses.matching_loss(a, 3 * a, "l2"), (2 * a).square().flatten(1).mean(1))


def test_an_unknown_metric_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="cosine, l1, l2"):
        losses.matching_loss(draw(1, 4, 2, 2), draw(1, 4, 2, 2), "l3")


def test_splitting_a_batch_changes_nothing():
    values, mask = torch.arange(8.0), torch.tensor([1, 0, 1, 1, 0, 0, 1, 1]).bool()
    whole = losses.masked_mean(values, mask, 5)
    parts = sum(losses.masked_mean(values[i : i + 2], mask[i : i + 2], 5) for i in range(0, 8, 2))
    assert whole == parts == values[mask].mean()
    assert losses.masked_mean(values, torch.zeros(8).bool(), 0) == 0


def normal_kl(mean_a, var_a, mean_b, var_b):
    return 0.5 * (math.log(var_b / var_a) + (var_a + (mean_a - mean_b) ** 2) / var_b - 1)


def test_the_variational_term_is_the_divergence_of_the_two_steps_in_bits():
    x, z0 = draw(1, 1, 1, 1), draw(1, 1, 1, 1, seed=1)
    output = torch.tensor([[[[0.3]], [[0.4]]]])
    here, there = ABAR[300].float(), ABAR[299].float()
    found = losses.variational_loss(output, x, z0, abar_from=here, abar_to=there)
    beta, beta_tilde = ddim.posterior_variance(abar_from=here, abar_to=there)
    predicted = ddim.predicted_clean(x, output[:, :1], abar=here)
    expected = normal_kl(
        ddim.posterior_mean(x, z0, abar_from=here, abar_to=there).item(),
        beta_tilde.item(),
        ddim.posterior_mean(x, predicted, abar_from=here, abar_to=there).item(),
        math.exp(0.7 * math.log(beta) + 0.3 * math.log(beta_tilde)),
    )
    assert found.item() == pytest.approx(expected / math.log(2), rel=1e-3)


def test_the_variational_term_trains_the_variance_alone():
    output = draw(2, 8, 2, 2).requires_grad_()
    here, there = ABAR[300].float(), ABAR[299].float()
    losses.variational_loss(
        output, draw(2, 4, 2, 2), draw(2, 4, 2, 2, seed=1), abar_from=here, abar_to=there
    ).sum().backward()
    assert output.grad[:, :4].abs().max() == 0
    assert output.grad[:, 4:].abs().min() > 0


def test_the_published_one_step_target_compares_two_different_levels():
    """Reproduction of a known trap: even a perfect model of a trajectory has a loss there."""

    def predict(z, timesteps, labels):
        return torch.zeros_like(z)

    z0, t = draw(2, 4, 2, 2) * 0.2, torch.tensor([500, 600])
    below, above = losses.one_step_pair(predict, z0, z0, torch.zeros_like(z0), t, t, ABAR)
    assert losses.matching_loss(below, above, "l2").min() > 0


def test_minimax_terms_take_the_extreme_over_the_memory():
    z = torch.eye(4).view(4, 1, 2, 2)
    predicted = z[:1] + 0.5 * z[1:2]
    cosines = torch.tensor([1, 0.5, 0, 0]) / math.sqrt(1.25)
    torch.testing.assert_close(losses.representativeness_loss(predicted, z[:2]), 1 - cosines[1:2])
    torch.testing.assert_close(losses.diversity_loss(predicted, z), cosines[:1])
