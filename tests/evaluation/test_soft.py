"""The protocol `soft` beside RDED's published code; tests/support/published_soft.py printed the values."""

from itertools import islice

import published_soft as published
import pytest
import torch
from torch import nn

from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.evaluation.train import training_steps

LOSSES = [0.2935609, 0.338308, 0.2142312, 0.2465854, 0.1807671]
LOSSES += [0.1894416, 0.1634286, 0.1791797, 0.1503253, 0.1339199]
LOGITS = [-1.142231, 0.05818069, 1.56469, -2.678129, 1.597823]


@pytest.mark.slow
def test_ten_steps_of_ten_images_per_class_and_the_trained_student_equal_the_published_code():
    protocol, seed = published.PROTOCOL, published.SEED
    student = protocol.build(published.CLASSES, published.generator_for(seed, "weights")).double()
    forward, teacher = (lambda x, network=n: network(x.double()) for n in (student, published.teacher()))
    training = training_steps(student, forward, published.images(), protocol, published.BUDGET, seed, teacher)
    losses = [loss.item() for loss in islice(training, published.STEPS)]
    assert losses == pytest.approx(LOSSES, rel=1e-5)
    with torch.no_grad():
        logits = student.eval()(published.batches()[0][0][:1])[0]
    assert logits.tolist() == pytest.approx(LOGITS, rel=1e-5)


def test_running_statistics_move_twice_per_step_only_if_the_labels_are_soft():
    for name, momentum in (("rded-32", 0.19), ("dc-cifar10", 0.1)):
        network = get_protocol(name, "convnet3bn").build(10, published.generator_for(0, "weights"))
        norms = [part.momentum for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        assert norms == pytest.approx([momentum] * 3)
