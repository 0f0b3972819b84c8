"""The losses of inversion matching, and what a step reads and sends."""

from dataclasses import fields

import pytest
import torch
from crossings import META, Sent

from ims3_ray.method import losses
from ims3_ray.method.ddim import abar_at, add_noise, noise_of
from ims3_ray.method.schedule import alphas_bar
from ims3_ray.models.training import Trainer, TrainingConfig
from ims3_ray.stages.finetune.batch import TrainingBatch

ABAR = alphas_bar()


def test_the_published_target_matches_all_pairs_and_drops_labels_anew(build_task):
    """Dropped labels and low levels have their term too, and the inversion's pass drops its own labels."""
    task = build_task(im={"target": "one_step"}, finetune={"label_dropout": 0.5}, inversions=False)
    labels_seen, predict = [], task._predict
    task._predict = lambda z, t, labels: labels_seen.append(labels.clone()) or predict(z, t, labels)
    terms, batch = task.losses(0, 0), task.images.draw(0, range(task._batch_size))
    null = task._dit.null_label
    first, second = (batch.label.masked_fill(d, null) for d in (batch.dropped, batch.dropped_again))
    assert [labels.tolist() for labels in labels_seen] == [first.tolist(), second.tolist()]
    assert not torch.equal(first, second)
    z_t = add_noise(batch.z0, batch.eps, abar=abar_at(ABAR, batch.t))
    eps = noise_of(predict(z_t, batch.t, first), 4)
    pair = losses.one_step_pair(predict, batch.z0, z_t, eps, batch.t, second, ABAR)
    torch.testing.assert_close(terms["matching"], losses.all_pairs_loss(*pair).mean())


@pytest.mark.parametrize("target", ["trajectory", "same_level"])
def test_inversions_are_matched_per_image_for_any_number_of_parts(build_task, target):
    changes = {"im": {"target": target}, "finetune": {"label_dropout": 0.5}}
    task = build_task(**changes)
    batch = task.images.draw(0, range(task._batch_size))
    assert 0 < batch.matched.sum() < len(batch.t)
    changes["finetune"] = {"label_dropout": 0.5, "micro_batches": 2}
    whole, parts = task.losses(0, 0), build_task(**changes)
    assert whole["matching"].requires_grad
    halves = [parts.losses(0, part)["matching"] for part in (0, 1)]
    torch.testing.assert_close(whole["matching"], sum(halves))


@pytest.mark.parametrize(
    ("precision", "apart"), [("fp32", set()), ("bf16", {"matching", "diversity", "representativeness"})]
)
def test_small_terms_get_their_own_pass_if_gradients_are_rounded(build_task, precision, apart):
    task = build_task(precision, im={"minimax": "image"})
    assert task.loss_weights["variational"] == 1
    assert set(task.separate_terms) == apart


@pytest.mark.parametrize(
    ("im", "more"),
    [({}, 0), ({"grad_ratio": 0.1}, 0), ({"minimax": "image"}, 8), ({"target": "one_step"}, 0)],
)
def test_a_step_reads_nothing_from_its_device_and_sends_only_its_batch(build_task, im, more):
    """Only a log step reads. Minimax also sends the rows of each class."""
    task = build_task(im=im, device=META)
    trainer = Trainer(task, TrainingConfig(steps=9, batch_size=8, micro_batches=1, lr=1e-3), 0, 1, META)
    for _ in range(2):  # the memories are filled
        with Sent() as counted:
            trainer.train_step()
        assert counted.count <= len(fields(TrainingBatch)) + more


@pytest.mark.parametrize("minimax", ["image", "class"])
def test_a_resumed_training_has_its_minimax_memories(build_task, minimax):
    config = TrainingConfig(steps=4, batch_size=8, micro_batches=1, lr=1e-3)
    whole, first, second = (
        Trainer(build_task(im={"minimax": minimax}), config, 0, 1, torch.device("cpu")) for _ in range(3)
    )
    for trainer in (first, whole, whole):
        trainer.train_step(), trainer.train_step()
    second.load_state_dict(first.state_dict())
    second.train_step(), second.train_step()
    assert torch.equal(whole.vector, second.vector)


def test_each_part_draws_only_its_own_rows(build_task):
    task, drawn = build_task(finetune={"micro_batches": 4}), []
    draw = task.images.draw
    task.images.draw = lambda step, rows: drawn.extend(rows) or draw(step, rows)
    for part in range(4):
        task.losses(0, part)
    assert drawn == [*range(task._batch_size)]
