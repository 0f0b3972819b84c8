"""The protocol `soft` beside RDED's published code; tests/support/published_soft.py printed the values."""

from itertools import islice

import published_soft as published
import pytest
import torch
from torch import nn

from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.evaluation.train import training_steps

LOSSES = [0.3110136, 0.3206295, 0.15504, 0.1636722, 0.2644393]
LOSSES += [0.139142, 0.1979623, 0.1057468, 0.152364, 0.2115653]
LOGITS = [38.8657, -30.19247, -19.54791, 35.88375, -42.40434]


@pytest.mark.slow
def test_ten_steps_of_ten_images_per_class_and_the_trained_student_equal_the_published_code():
    protocol, seed = published.PROTOCOL, published.SEED
    with published.float64():
        student = protocol.build(published.CLASSES, published.generator_for(seed, "weights"))
        words = protocol, published.BUDGET, seed, published.teacher()
        training = training_steps(student, student, published.images(), *words)
        losses = [loss.item() for loss in islice(training, published.STEPS)]
        first = published.batches()[0][0][:1]
    assert losses == pytest.approx(LOSSES, rel=1e-5)
    with torch.no_grad():
        logits = student.eval()(first)[0]
    assert logits.tolist() == pytest.approx(LOGITS, rel=1e-5)


def test_running_statistics_move_twice_per_step_only_if_the_labels_are_soft():
    for name, momentum in (("rded-32", 0.19), ("dc-cifar10", 0.1)):
        network = get_protocol(name, "convnet3bn").build(10, published.generator_for(0, "weights"))
        norms = [part.momentum for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        assert norms == pytest.approx([momentum] * 3)
