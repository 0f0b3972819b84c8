"""Training and scoring: reproducible, right on what can be known, and honest about last and best."""

import dataclasses
import json

import pytest
import torch
from tiny_generator import seeded, striped

from ims3_ray.errors import InputError
from ims3_ray.evaluation import train
from ims3_ray.evaluation.protocols import Augmentations, Budget, get_protocol
from ims3_ray.evaluation.train import (
    accuracy,
    batch_rows,
    final_score,
    learning_rate_factor,
    plan,
    train_step,
    train_with_evals,
)

BASE = get_protocol("minimax").budget(10, 10)


def _protocol(**changes):
    tiny = {"network": "convnet3", "width": 4, "image_size": 8, "batch_size": 8}
    tiny |= {"steps": 12, "evaluations": 3, "learning_rate": 0.05}
    tiny |= {"augmentations": Augmentations(crop_scale=(0.8, 1.0), flip=0.5)}
    return get_protocol("quick").model_copy(update=tiny | changes)


def _score(train_set=None, test=None, *, seed=0, **changes):
    sets = train_set or striped(10, 1), test or striped(20, 2)
    return final_score(train_with_evals(*sets, _protocol(**changes), 2, seed))


def _values(score):
    return {name: value for name, value in dataclasses.asdict(score).items() if name != "seconds"}


def test_it_learns_what_can_be_learnt_and_the_labels_it_was_given():
    images, labels = striped(10, 1)
    assert _score((images, labels), steps=60).last > 0.95
    assert _score((images, 1 - labels), steps=60).last < 0.05
    assert _score((images, labels), steps=120, cutmix=1.0).last > 0.95


def test_mixing_changes_no_loss_of_a_model_that_is_blind():
    class Blind(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor([1.0, -1.0]))

        def forward(self, x):
            return self.logits.expand(len(x), 2)

    images, labels = striped(3, 1)
    for cutmix in (0.0, 1.0):
        model = Blind()
        expected = torch.nn.functional.cross_entropy(model(images), labels)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        step = train_step(model, optimiser, images, labels, _protocol(cutmix=cutmix), seeded())
        assert step.item() == pytest.approx(expected.item())
        assert not torch.equal(model.logits, torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_a_large_batch_in_parts_on_a_cpu_takes_the_same_step(cutmix, monkeypatch):
    protocol = _protocol(cutmix=cutmix, image_size=16)
    images = torch.rand(10, 3, 16, 16, generator=seeded())
    images, labels, trained = (255 * images).to(torch.uint8), torch.arange(10) % 2, []
    for limit in (train.WHOLE_BATCH, 16**2 * 4):
        monkeypatch.setattr(train, "WHOLE_BATCH", limit)
        monkeypatch.setattr(train, "PASS", 16**2 * 4)
        model = protocol.build(2, seeded())
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        loss = train_step(model, optimiser, images, labels, protocol, seeded())
        trained.append([loss, *model.parameters()])
    assert [len(range(10)[part]) for part in train.passes(10, protocol, "cpu")] == [4, 4, 2]
    with_batch_norm = protocol.model_copy(update={"network": "convnet3bn"})
    assert train.passes(10, protocol, "cuda") == train.passes(10, with_batch_norm, "cpu") == [slice(0, 10)]
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-6)


def test_images_beyond_the_limit_stay_on_the_host(monkeypatch):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert train.resident(images, torch.device("meta")).device.type == "meta"
    monkeypatch.setattr(train, "RESIDENT_BYTES", images.nbytes - 1)
    assert train.resident(images, torch.device("meta")).device.type == "cpu"


def test_a_seed_fixes_every_number_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, again, other = (_values(_score(seed=seed, cutmix=0.5)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert first == again != other
    torch.manual_seed(123)
    assert _values(_score(cutmix=0.5)) == first


def test_a_network_trains_in_training_mode_and_is_scored_in_evaluation_mode(monkeypatch):
    """So that batch norm scores by its running means."""
    modes = []
    for function in (train_step, accuracy):

        def seen(model, *given, function=function):
            modes.append((function.__name__, model.training))
            return function(model, *given)

        monkeypatch.setattr(train, function.__name__, seen)
    _score(steps=4, evaluations=2)
    assert modes == ([("train_step", True)] * 2 + [("accuracy", False)]) * 2


def test_scored_images_do_not_touch_the_training():
    assert _score(test=striped(20, 2)).train_loss == _score(test=striped(20, 3)).train_loss


@pytest.mark.parametrize(("per_class", "epochs"), [(10, 2000), (11, 1500), (60, 1000)])
def test_a_set_trains_for_the_epochs_of_its_own_size(per_class, epochs, monkeypatch):
    planned = []
    monkeypatch.setattr(train, "plan", lambda *work: planned.append(plan(*work)) or (1, {1}))
    monkeypatch.setattr(train, "batch_rows", lambda *work: [torch.arange(2)])
    _score(striped(per_class, 1), striped(2, 2), steps=None, schedule="steps", warmup=0.0)
    assert planned[0][0] == epochs * -(-2 * per_class // 8)


def test_training_losses_are_means_since_the_look_before():
    thirds, whole = _score(evaluations=3).train_loss, _score(evaluations=1).train_loss
    assert [step for step, _ in thirds] == [4, 8, 12]
    assert [step for step, _ in whole] == [12]
    assert sum(loss for _, loss in thirds) / 3 == pytest.approx(whole[0][1])


def test_last_is_the_last_and_best_the_best_of_evenly_spaced_looks():
    score = _score(steps=10, evaluations=4)
    assert [step for step, _ in score.history] == [3, 5, 8, 10]
    assert score.last == score.history[-1][1]
    assert score.best == max(value for _, value in score.history)
    assert json.loads(json.dumps(dataclasses.asdict(score)))["last"] == score.last


def test_published_protocols_score_a_hundred_times_the_last_time_at_the_end():
    for ipc in (1, 10, 50, 200, 500, 1300):
        budget = get_protocol("minimax").budget(ipc, 10)
        steps, marks = plan(budget, 10 * ipc, 100)
        assert len(marks) == 100
        assert max(marks) == steps == budget.epochs * -(-10 * ipc // 64)


def test_epochs_see_every_image_once_and_keep_the_short_last_batch():
    budget = BASE.model_copy(update={"epochs": 3, "batch_size": 4})
    batches = list(batch_rows(budget, 10, seeded()))
    assert [len(rows) for rows in batches] == [4, 4, 2] * 3
    epochs = [torch.cat(batches[start : start + 3]).tolist() for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_steps_fill_every_batch_and_see_images_equally_often():
    budget = Budget(epochs=None, steps=7, batch_size=8, learning_rate=1.0, weight_decay=0.0)
    rows = list(batch_rows(budget, 3, seeded()))
    assert [len(batch) for batch in rows] == [8] * 7
    counts = torch.bincount(torch.cat(rows)).tolist()
    assert sum(counts) == 56
    assert max(counts) - min(counts) <= 1


def test_learning_rate_falls_where_the_published_schedule_lets_it_fall():
    chosen, budget = get_protocol("minimax"), BASE.model_copy(update={"epochs": 100})
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2 * 100 // 3, 5 * 100 // 6], gamma=0.2)
    for epoch in range(100):
        found = [learning_rate_factor(chosen, budget, 2 * epoch + step, 200) for step in (0, 1)]
        assert found == pytest.approx(scheduler.get_last_lr() * 2)
        optimiser.step(), scheduler.step()


def test_cosine_rises_to_one_and_falls_to_nearly_nothing():
    chosen = _protocol(schedule="cosine", warmup=0.1)
    rates = [learning_rate_factor(chosen, BASE, step, 300) for step in range(300)]
    assert max(rates) == rates[30] == 1
    assert rates[0] < 0.05
    assert rates[-1] < 0.001
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_impossible_sets_are_refused():
    images, labels = striped(4, 1)
    for told, options in (
        ("no training image for class 1", {"train_set": (images[labels == 0], labels[labels == 0])}),
        ("test_labels: .*0 to 2 .*0 to 1", {"test": (images, labels * 2)}),
        ("train_labels: .*no images", {"train_set": (images[:0], labels[:0])}),
        ("convnet6 .*64 px, not 8", {"network": "convnet6"}),
        ("train_images: .*8×6 .*quick-v2/.* 8", {"train_set": (images[:, :, 1:7], labels)}),
    ):
        with pytest.raises(InputError, match=told):
            _score(**options)
