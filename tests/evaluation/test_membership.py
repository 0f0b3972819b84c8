"""The membership attack: right on what can be known by hand, and on a network that learnt by heart."""

import math

import numpy as np
import pytest
import torch

from ims3_ray.evaluation.membership import attack, confidence, describe_attack


def test_confidence_is_the_log_odds_of_the_true_class_and_never_infinite():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    p = logits.softmax(dim=1)[range(5), labels]
    assert confidence(logits, labels).tolist() == pytest.approx((p / (1 - p)).log().tolist())
    assert confidence(torch.tensor([[500.0, -500.0]]), torch.tensor([0])).item() == 1000


def test_the_auc_is_the_share_of_pairs_with_a_surer_training_image():
    draws = np.random.default_rng(0)
    members, unseen = draws.integers(0, 9, 40).astype(float), draws.integers(0, 8, 30).astype(float)
    pairs = np.sign(members[:, None] - unseen) / 2 + 0.5
    assert attack(members, unseen)["auc"] == pytest.approx(pairs.mean())


def test_images_surer_than_all_but_a_percent_of_the_unseen_are_found():
    unseen = np.arange(200.0)  # two may be false alarms
    found = attack(np.array([150.0, 197.0, 197.5, 300.0]), unseen)
    assert (found["found"], found["images"], found["unseen"]) == (0.5, 4, 200)
    assert attack(np.array([5.0, 11.0]), np.arange(10.0))["found"] == 0.5  # of few, none


def test_the_interval_is_that_of_the_rank_test_and_zero_if_all_are_recognised():
    same = np.arange(100.0)
    result = attack(same, same)
    assert result["auc"] == 0.5
    assert result["interval"] == pytest.approx(1.96 * math.sqrt(201 / (12 * 100 * 100)), rel=0.01)
    assert "no better than by guessing: AUC 0.500" in describe_attack(result)
    apart = attack(same + 1000, same)
    assert (apart["auc"], apart["interval"], apart["found"]) == (1.0, 0.0, 1.0)
    assert "better than by guessing (0.5): AUC 1.000" in describe_attack(apart)
