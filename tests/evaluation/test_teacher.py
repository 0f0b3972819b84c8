"""Soft labels: the published loss, rate, views and optimiser; teachers, and what is refused of them."""

import math

import numpy as np
import pytest
import torch
from tiny_generator import seeded, striped
from torch.nn import functional

from ims3_ray.errors import InputError
from ims3_ray.evaluation.augment import normalise, shuffle_patches
from ims3_ray.evaluation.protocols import Augmentations, get_protocol
from ims3_ray.evaluation.teacher import check_teacher, load_teacher, teacher_protocol
from ims3_ray.evaluation.train import (
    _optimiser,
    final_score,
    learning_rate_factor,
    soft_loss,
    train_with_evals,
)
from ims3_ray.models.classifiers import build
from ims3_ray.models.extractor import load_timm, save_extractor

SOFT, CPU = get_protocol("soft-32"), torch.device("cpu")
THREE = ("n02086240", "n02087394", "n02088364")  # of ImageNet, labels 155, 159, 162


def test_the_loss_is_the_published_one():
    ours, theirs = (3 * torch.randn(6, 5, generator=seeded(seed)) for seed in (0, 1))
    expected = torch.nn.KLDivLoss(reduction="batchmean")(
        functional.log_softmax(ours / 20, dim=1), functional.softmax(theirs / 20, dim=1)
    )
    assert torch.allclose(soft_loss(ours, theirs, 20.0), expected)
    assert soft_loss(theirs, theirs, 20.0).abs() < 1e-7


def test_the_rate_falls_by_epochs_to_a_half():
    budget = SOFT.budget(10, 10)
    for step in range(600):
        published = 0.5 * (1.0 + math.cos(math.pi * (step // 2) / 300 / 2))
        assert learning_rate_factor(SOFT, budget, step, 600) == pytest.approx(published)


def test_batches_grow_with_the_set_and_from_a_hundred_classes_on():
    sizes = {n: [SOFT.budget(ipc, n).batch_size for ipc in (1, 10, 50, 100)] for n in (10, 99, 100, 1000)}
    assert sizes[10] == sizes[99] == [10, 50, 100, 100]
    assert sizes[100] == sizes[1000] == [20, 100, 200, 200]
    assert {SOFT.budget(ipc, n).epochs for ipc in (1, 50) for n in (10, 1000)} == {300}


def test_networks_have_the_published_rates():
    rates = {"resnet50": 1e-3, "vgg11": 5e-4, "efficientnet_b0": 2e-3, "mobilenetv2_100": 2.5e-3}
    rates |= dict.fromkeys(("vit_base_patch16_224", "swinv2_tiny_window8_256"), 1e-4)
    assert {n: get_protocol("soft", network=f"timm:{n}").learning_rate for n in rates} == rates


def test_neither_biases_nor_norms_decay():
    model, rules = build("convnet3", 3, 8, seeded(0), width=4), SOFT
    groups = _optimiser(model, rules, rules.budget(1, 3)).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.01 if name.endswith("weight") and parameter.dim() > 1 else 0.0)


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_patches_change_places_by_columns_and_rows_and_nothing_is_lost(size):
    height, width = size
    image = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width).expand(200, 3, -1, -1)
    shuffled = shuffle_patches(image, 2, seeded(0))
    whole, (h, w) = image[0, 0], (height // 2, width // 2)
    across, down = torch.cat((whole[:, w:], whole[:, :w]), 1), torch.cat((whole[h:], whole[:h]), 0)
    both = torch.cat((across[h:], across[:h]), 0)
    counts = [sum(torch.equal(seen, form) for seen in shuffled[:, 0]) for form in (whole, across, down, both)]
    assert sum(counts) == 200
    assert min(counts) > 30
    assert torch.equal(shuffled[:, 0], shuffled[:, 2])


def test_a_student_learns_what_its_teacher_says_whatever_the_labels_are():
    def knows(x):
        return 50 * torch.stack([x.mean(dim=(1, side)).var(dim=1) for side in (3, 2)], dim=1)

    rules = SOFT.model_copy(update={"image_size": 16, "width": 8, "epochs": 40, "learning_rate": 0.02})
    images, labels = striped(10, 1, side=16)
    for given in (labels, 1 - labels):
        sets = (images, given), striped(20, 2, side=16)
        assert final_score(train_with_evals(*sets, rules, 2, 0, teacher=knows)).last > 0.95


def test_a_teacher_sees_images_as_it_was_trained_to(tmp_path):
    model, own = build("convnet3", 3, 16, seeded(0), width=4), {"mean": (0.3,) * 3, "deviation": (0.2,) * 3}
    save_extractor(model, tmp_path, **own)
    classes, pixels = ("a", "b", "c"), torch.rand(4, 3, 16, 16, generator=seeded(1))
    rules = SOFT.model_copy(update={"image_size": 16})
    answers = load_teacher(str(tmp_path), rules, classes, CPU)(normalise(pixels, rules))
    assert torch.allclose(answers, model.half().float()((pixels - 0.3) / 0.2), atol=1e-4)
    grey = rules.model_copy(update={"channels": 1, "mean": (0.4,), "deviation": (0.5,), "image_size": 28})
    larger = torch.rand(4, 3, 28, 28, generator=seeded(2))
    assert load_teacher(str(tmp_path), grey, classes, CPU)(normalise(larger, grey)).shape == (4, 3)


def test_a_teacher_of_imagenet_answers_for_the_classes_with_these_ids():
    spec = "timm:test_resnet?pretrained=false"
    model, size, mean, deviation = load_timm(spec)
    rules = SOFT.model_copy(update={"image_size": size, "mean": mean, "deviation": deviation})
    x = torch.randn(2, 3, size, size, generator=seeded(0))
    answers = load_teacher(spec, rules, THREE, CPU)(x)
    assert torch.equal(answers, model.eval()(x)[:, [155, 159, 162]])
    with pytest.raises(InputError, match=r"^evaluate.teacher: .*1000 .* 2"):
        load_teacher(spec, rules, ("cat", "dog"), CPU)


def test_a_teacher_with_other_classes_is_refused():
    labels, classes = np.arange(60) % 3, ("ant", "bee", "cat")
    right = labels.copy()
    right[:6] = (labels[:6] + 1) % 3
    assert check_teacher(right, labels, classes) == pytest.approx(0.9)
    swapped = np.array([1, 0, 2])[labels]
    with pytest.raises(InputError, match=r"^evaluate.teacher: .*'ant' are 'bee' to it \(100 %\)[^\n]*$"):
        check_teacher(swapped, labels, classes)
    guesses = np.random.default_rng(0).integers(0, 3, 60)
    with pytest.raises(InputError, match=r"better than guessing[^\n]*$"):
        check_teacher(guesses, labels, classes)


def test_the_teacher_of_a_run_learns_hard_labels_of_whole_images():
    rules = teacher_protocol("soft-32")
    assert not rules.is_soft
    assert rules.augmentations == Augmentations(crop_scale=(0.5, 1.0), flip=0.5)
    assert (rules.cutmix, rules.network, rules.budget(6000, 10).epochs) == (0.0, "convnet3", 30)
