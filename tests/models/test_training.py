"""The training loop without Ray: micro-batches, loss weights, averages, resuming."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ims3_ray.models import device
from ims3_ray.models.training import Trainer, TrainingConfig, gainless, split_micro_batches

DATA = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Regression:
    """Two terms on a linear layer; a micro-batch is a slice of the batch of 8."""

    def __init__(self, micro_batches, ratios=None, weights=None, separate_terms=()):
        self.layer = nn.Linear(3, 1)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.1)
        self.parameters = dict(self.layer.named_parameters())
        self.loss_weights = weights or {"square": 1.0, "absolute": 0.5}
        self.gradient_ratios, self.separate_terms = ratios or {}, separate_terms
        self.size = 8 // micro_batches

    def losses(self, step, part):
        out = self.layer(DATA[part * self.size : (part + 1) * self.size])
        return {"square": ((out - step) ** 2).sum() / 8, "absolute": out.abs().sum() / 8}

    def after_step(self, step, gather): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...

    def save(self, values, averages, out): ...

    def close(self): ...


def trainer(micro_batches=2, rank=0, world=1, task=None, **options):
    settings = {"steps": 20, "batch_size": 8, "micro_batches": micro_batches, "lr": 0.01, "log_every": 5}
    config = TrainingConfig(**settings | options)
    return Trainer(task or Regression(micro_batches), config, rank, world, torch.device("cpu"))


def test_gradient_is_that_of_the_weighted_sum_over_the_batch():
    ours, reference = trainer(micro_batches=4), Regression(1)
    losses = reference.losses(0, 0)
    (losses["square"] + 0.5 * losses["absolute"]).backward()
    ours.train_step()
    for view, theirs in zip(ours._views(ours.vector.grad), reference.parameters.values(), strict=True):
        torch.testing.assert_close(view, theirs.grad)


def train(ours, steps):
    while ours.step < steps:
        ours.train_step()
    return ours


def test_logging_changes_a_step_only_by_rounding():
    quiet, loud = (train(trainer(log_every=every), 10) for every in (1000, 1))
    torch.testing.assert_close(quiet.parameters, loud.parameters, rtol=1e-5, atol=1e-6)


def test_separate_terms_survive_the_rounding_of_bf16():
    """A joint backward pass in bf16 rounds away a term of weight 0.002."""

    class Rounded(Regression):
        def losses(self, step, part):
            rows = DATA[part * self.size : (part + 1) * self.size].bfloat16()
            out = rows @ self.layer.weight.bfloat16().T + self.layer.bias.bfloat16()
            return {"square": out.mean().float() * 8, "absolute": out.abs().mean().float() / 3}

    def gradient(square, absolute, **options):
        weights = {"square": square, "absolute": absolute}
        ours = train(trainer(1, task=Rounded(1, weights=weights, **options)), 1)
        return ours.vector.grad

    large, small = gradient(1.0, 0.0), gradient(0.0, 0.002)
    added = gradient(1.0, 0.002, separate_terms={"absolute"}) - large
    torch.testing.assert_close(added, small, rtol=1e-3, atol=1e-6)
    assert (gradient(1.0, 0.002) - large - small).norm() > 0.5 * small.norm()


def test_terms_are_logged_unweighted_and_gradient_ratios_are_met():
    metrics = trainer(task=Regression(2, ratios={"absolute": 0.25}), log_every=1).train_step()
    for name, value in Regression(1).losses(0, 0).items():
        assert metrics[name] == pytest.approx(value.item())
    assert metrics["grad_ratio/absolute"] == pytest.approx(0.25)


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = train(trainer(), 20)
    torch.save(train(trainer(), 7).state_dict(), tmp_path / "state.pt")
    resumed = trainer()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(resumed, 20)
    for a, b in zip((*whole.parameters, whole.ema), (*resumed.parameters, resumed.ema), strict=True):
        assert torch.equal(a, b)
    for entry in (*whole.history, *resumed.history):
        entry.pop("images_per_s", None)
    assert whole.history == resumed.history


@pytest.mark.parametrize(("micro_batches", "world"), [(2, 1), (2, 2), (4, 3), (5, 2), (8, 8)])
def test_micro_batches_are_divided_evenly_in_order(micro_batches, world):
    shares = split_micro_batches(micro_batches, world)
    assert [part for share in shares for part in share] == list(range(micro_batches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert min(map(len, shares)) >= 1


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_gradients_are_gathered_and_summed_in_order_for_twice_their_bytes(monkeypatch, workers):
    """Eight micro-batches on gloo, one thread per worker."""
    rows = torch.randn(8, 2, 501, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 501)
    expected = rows[0].clone()
    for row in rows[1:]:
        expected += row
    assert not torch.equal(expected, rows.flip(0).sum(0))
    shares, sent = split_micro_batches(8, workers), []
    store, threads, counts = dist.HashStore(), threading.local(), [*map(len, shares)]

    def all_to_all_single(received, mine, sizes, sent_sizes):
        sent.append(sum(sent_sizes[:-1]))
        threads.group.alltoall_base(received, mine, sizes, sent_sizes).wait()

    def all_gather_single(received, mine):
        sent.append(mine.numel() * (workers - 1))
        threads.group._allgather_base(received, mine).wait()

    def all_gather(received, mine):
        threads.group.allgather([received], [mine]).wait()

    monkeypatch.setattr(device.dist, "all_gather", all_gather)
    monkeypatch.setattr(device.dist, "all_to_all_single", all_to_all_single)
    monkeypatch.setattr(device.dist, "all_gather_single", all_gather_single)

    def work(rank, share):
        threads.group = dist.ProcessGroupGloo(store, rank, workers, timedelta(seconds=60))
        own = rows[share.start : share.stop]
        return device.sum_in_order(own, counts), device.gather(own, counts)

    with ThreadPoolExecutor(workers) as pool:
        for total, gathered in pool.map(work, range(workers), shares):
            assert torch.equal(total, expected)
            assert torch.equal(gathered, rows)
    per_sum = sum(sent) / workers / rows[0].numel()  # values that a worker sends
    assert per_sum < 8 / workers + 1
    assert (workers < 8) or per_sum < 2


class Scored(Regression):
    """Held out: half of the distance from the layer's bias to a goal, per micro-batch."""

    def held_out_losses(self, part):
        assert not torch.is_grad_enabled()
        return {"distance": (self.layer.bias - 0.3).abs().sum() / 2}


def train_until_done(ours):
    """Return the averages at each score."""
    averages = []
    while not ours.is_done:
        if "held_out/distance" in ours.train_step():
            averages.append(ours._views(ours.ema)[-1].clone())
    return averages


def test_the_best_averages_are_kept_and_training_stops_without_a_gain():
    options = {"steps": 200, "eval_every": 3, "patience": 4, "lr": 0.05, "ema_decay": 0.5}
    ours, first, resumed = (trainer(task=Scored(2), **options) for _ in range(3))
    averages = train_until_done(ours)
    curve = [entry["held_out/distance"] for entry in ours.history if "held_out/distance" in entry]
    best = curve.index(min(curve))
    assert 0 < best == len(curve) - 1 - 4  # neither the first nor the last
    assert ours.step == 3 * len(curve) < 200
    assert torch.equal(ours.averages()["bias"], averages[best])
    assert not torch.equal(ours.averages()["bias"], ours._views(ours.ema)[-1])
    train(first, ours.step - 5)  # after the best score
    resumed.load_state_dict(first.state_dict())
    train_until_done(resumed)
    assert resumed.step == ours.step
    assert all(torch.equal(value, resumed.averages()[name]) for name, value in ours.averages().items())


@pytest.mark.parametrize(("curve", "number"), [([], 0), ([3, 2, 1], 0), ([1, 1, 1], 2), ([2, 3, 3, 1, 4], 1)])
def test_an_equal_score_is_no_gain(curve, number):
    assert gainless(curve) == number


def test_checkpoint_of_another_configuration_is_refused_unless_it_is_that_of_checkpoints():
    state = trainer(lr=0.02).state_dict()
    trainer(lr=0.02, checkpoint_every=3).load_state_dict(state)
    with pytest.raises(AssertionError, match="configuration"):
        trainer().load_state_dict(state)


def test_ema_warms_up_and_forgets_its_start():
    def kept_after(steps, **options):
        numbers = TrainingConfig(steps=steps, batch_size=8, micro_batches=2, lr=1.0, **options)
        return math.prod(numbers.ema_decay_at(n) for n in range(steps))

    assert kept_after(1) == 0.1
    assert kept_after(8000) < 1e-6
    assert kept_after(8000, ema_warmup=False) == pytest.approx(0.4493, abs=1e-4)  # as in the published code


def test_learning_rate_warms_up_and_falls_to_zero():
    sizes = {"steps": 100, "batch_size": 8, "micro_batches": 2, "lr": 1.0}
    config = TrainingConfig(**sizes, warmup_steps=9, decay="cosine")
    assert [config.lr_at(n) for n in (0, 50, 100)] == pytest.approx([0.1, 0.5, 0.0], abs=1e-12)
    assert TrainingConfig(**sizes).lr_at(99) == 1.0


@pytest.mark.parametrize("log_every", [1, 1000])
def test_divergence_is_found_at_a_logging_step_or_at_the_end(log_every):
    ours = trainer(steps=4, lr=1e30, log_every=log_every)
    finite = []
    while ours.step < 4 and (not finite or finite[-1]):
        finite.append(ours.is_finite(ours.train_step()))
    assert not finite[-1]
    well = trainer(steps=4, log_every=log_every)
    assert all(well.is_finite(well.train_step()) for _ in range(4))
