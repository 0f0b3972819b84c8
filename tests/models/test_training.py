"""The training loop without Ray: parts, weights, averages, resuming."""

import math

import pytest
import torch
from torch import nn

from ims3_ray.models import training
from ims3_ray.models.training import Trainer, TrainingConfig, split_parts

DATA = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Regression:
    """Two terms on a linear layer; a part is a slice of the batch of 8."""

    def __init__(self, micro_batches, ratios=None, weights=None, apart=()):
        self.layer = nn.Linear(3, 1)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.1)
        self.parameters = dict(self.layer.named_parameters())
        self.weights = weights or {"square": 1.0, "absolute": 0.5}
        self.ratios, self.apart = ratios or {}, apart
        self.size = 8 // micro_batches

    def losses(self, step, part):
        out = self.layer(DATA[part * self.size : (part + 1) * self.size])
        return {"square": ((out - step) ** 2).sum() / 8, "absolute": out.abs().sum() / 8}

    def after_step(self, step, gather): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def trainer(micro_batches=2, rank=0, world=1, task=None, **options):
    settings = {
        "steps": 20,
        "batch_size": 8,
        "micro_batches": micro_batches,
        "lr": 0.01,
        "log_every": 5,
    } | options
    optimisation = TrainingConfig(**settings)
    return Trainer(task or Regression(micro_batches), optimisation, rank, world, torch.device("cpu"))


def test_a_step_has_the_gradient_of_the_weighted_sum_over_the_whole_batch():
    ours = trainer(micro_batches=4)
    losses = Regression(1).losses(0, 0)
    reference = Regression(1)
    losses = reference.losses(0, 0)
    (losses["square"] + 0.5 * losses["absolute"]).backward()
    ours.advance()
    for parameter, theirs in zip(ours.parameters, reference.parameters.values(), strict=True):
        torch.testing.assert_close(parameter.grad, theirs.grad)


def test_logging_a_step_does_not_change_it_beyond_rounding():
    quiet, loud = trainer(log_every=1000), trainer(log_every=1)
    for _ in range(10):
        quiet.advance()
        loud.advance()
    for a, b in zip(quiet.parameters, loud.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_term_of_small_weight_is_not_lost_in_the_rounding_of_the_others():
    """A backward pass in bf16 rounds the sum's gradient to a share of the large term's: 0.002 is lost."""

    class Rounded(Regression):
        def losses(self, step, part):
            rows = DATA[part * self.size : (part + 1) * self.size].bfloat16()
            out = rows @ self.layer.weight.bfloat16().T + self.layer.bias.bfloat16()
            return {"square": out.mean().float() * 8, "absolute": out.abs().mean().float() / 3}

    def gradient(**options):
        ours = trainer(1, task=Rounded(1, weights={"square": 1.0, "absolute": 0.002}, **options))
        ours.advance()
        return torch.cat([p.grad.flatten() for p in ours.parameters])

    large = trainer(1, task=Rounded(1, weights={"square": 1.0, "absolute": 0.0}))
    small = trainer(1, task=Rounded(1, weights={"square": 0.0, "absolute": 0.002}))
    large.advance(), small.advance()
    alone = [torch.cat([p.grad.flatten() for p in of.parameters]) for of in (large, small)]
    added = gradient(apart={"absolute"}) - alone[0]
    torch.testing.assert_close(added, alone[1], rtol=1e-3, atol=1e-6)
    assert (gradient() - alone[0] - alone[1]).norm() > 0.5 * alone[1].norm()


def test_terms_are_logged_unweighted_and_ratios_kept():
    task = Regression(2, ratios={"absolute": 0.25})
    ours = trainer(task=task, log_every=1)
    first = Regression(1).losses(0, 0)
    metrics = ours.advance()
    assert metrics["square"] == pytest.approx(first["square"].item())
    assert metrics["absolute"] == pytest.approx(first["absolute"].item())
    assert metrics["grad_ratio/absolute"] == pytest.approx(0.25)


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path):
    whole = trainer()
    for _ in range(20):
        whole.advance()
    first = trainer()
    for _ in range(7):
        first.advance()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = trainer()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    while second.step < 20:
        second.advance()
    for a, b in zip((*whole.parameters, whole.ema), (*second.parameters, second.ema), strict=True):
        assert torch.equal(a, b)
    unclocked = lambda history: [{k: v for k, v in entry.items() if k != "images_per_s"} for entry in history]  # noqa: E731
    assert unclocked(whole.history) == unclocked(second.history)


@pytest.mark.parametrize(("micro_batches", "world"), [(2, 1), (2, 2), (4, 3), (5, 2), (8, 8)])
def test_every_part_belongs_to_one_worker_in_order(micro_batches, world):
    shares = split_parts(micro_batches, world)
    assert [part for share in shares for part in share] == list(range(micro_batches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert min(map(len, shares)) >= 1


def test_parts_of_unequal_shares_are_gathered_in_order(monkeypatch):
    """Workers of 1, 2 and 1 parts: what each sends is filled up, and the filling left out again."""
    parts, sent = torch.arange(8.0).reshape(4, 2), []

    def all_gather(out, mine):
        sent.append(mine)
        for tensor, (start, stop) in zip(out, ((0, 1), (1, 3), (3, 4)), strict=True):
            tensor.zero_()[: stop - start] = parts[start:stop]

    monkeypatch.setattr(training.dist, "all_gather", all_gather)
    assert torch.equal(training.gather(parts[:1], [1, 2, 1]), parts)
    assert sent[0].shape == (2, 2)
    assert torch.equal(training.sum_in_order(parts[:1], [1, 2, 1]), parts.sum(0))


def test_a_checkpoint_of_another_configuration_is_refused():
    state = trainer(lr=0.02).state_dict()
    with pytest.raises(AssertionError, match="another configuration"):
        trainer().load_state_dict(state)


def test_a_resumable_checkpoint_of_dit_xl_2_takes_less_than_30_megabytes(tmp_path):
    """Values, their average and two moments, fp32, of the 1,739,552 values that DiffFit trains there."""

    class Bias(Regression):
        def __init__(self):
            super().__init__(2)
            self.layer = nn.Linear(3, 434_888)
            self.parameters = dict(self.layer.named_parameters())

    ours = trainer(task=Bias())
    ours.advance()
    assert sum(p.numel() for p in ours.parameters) == 1_739_552
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    assert 27.8e6 < (tmp_path / "state.pt").stat().st_size < 30e6


def test_the_average_warms_up_and_forgets_its_start():
    def kept_after(steps, **options):
        numbers = TrainingConfig(steps=steps, batch_size=8, micro_batches=2, lr=1.0, **options)
        return math.prod(numbers.ema_decay_at(n) for n in range(steps))

    assert kept_after(1) == 0.1
    assert kept_after(8000) < 1e-6
    assert kept_after(8000, ema_warmup=False) == pytest.approx(0.4493, abs=1e-4)  # as the published code


def test_the_average_is_of_the_trained_values_alone():
    ours = trainer()
    for _ in range(3):
        ours.advance()
    assert set(ours.averages()) == set(ours.values()) == {"weight", "bias"}


def test_the_learning_rate_warms_up_and_falls_to_zero():
    optimisation = TrainingConfig(
        steps=100, batch_size=8, micro_batches=2, lr=1.0, warmup_steps=9, decay="cosine"
    )
    assert optimisation.lr_at(0) == pytest.approx(0.1)
    assert optimisation.lr_at(50) == pytest.approx(0.5)
    assert optimisation.lr_at(100) == pytest.approx(0.0, abs=1e-12)
    assert TrainingConfig(steps=100, batch_size=8, micro_batches=2, lr=1.0).lr_at(99) == 1.0


@pytest.mark.parametrize("log_every", [1, 1000])
def test_a_training_that_diverged_is_told_at_a_log_step_or_at_its_end(log_every):
    ours = trainer(steps=4, lr=1e30, log_every=log_every)
    finite = []
    while ours.step < 4 and (not finite or finite[-1]):
        finite.append(ours.is_finite(ours.advance()))
    assert not finite[-1]
    well = trainer(steps=4, log_every=log_every)
    assert all(well.is_finite(well.advance()) for _ in range(4))
