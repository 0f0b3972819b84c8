"""Probes of refinement: networks trained on real images by a protocol, kept at points of that training."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ims3_ray.config.evaluation import Probe
from ims3_ray.models.classifiers import Classifier

from .inference import forward_in, numerics_for
from .protocols import VALIDATION, protocols
from .rules import Protocol
from .train import Device, Labelled, budget_of, generator_of, plan, training_steps

State = dict[str, Tensor]


def probe_protocols(settings: Probe, evaluated: str) -> list[Protocol]:
    """How probes of every kind are trained: as classifiers of `probe.protocol`, or of the run's own.

    On whose split a protocol scores changes nothing here, and stands in no fingerprint.
    """
    name = (settings.protocol or evaluated).removesuffix(VALIDATION)
    kinds = protocols(name, settings.networks)
    width = {"width": settings.width} if settings.width else {}
    return [rules.model_copy(update=width) for rules in kinds]


def states_in_training(
    train: Labelled, rules: Protocol, num_classes: int, seed: int, points: Sequence[int], device: Device
) -> Iterator[tuple[int, State]]:
    """(steps done, the network's values on the CPU) at each of `points`; then the training is left."""
    images, labels = (x.to(device) for x in train)
    model = rules.build(num_classes, generator_of(seed, "weights")).to(device)
    budget = budget_of(rules, len(labels), num_classes)
    forward = forward_in(model, numerics_for(labels.device.type, plan(budget, len(labels), 1)[0]))
    training = training_steps(model, forward, (images, labels), rules, budget, seed)
    done = 0
    for point in points:
        while done < point:
            next(training)
            done += 1
        yield done, {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def trained(train: Labelled, rules: Protocol, num_classes: int, seed: int, device: Device) -> State:
    """The network's values on the CPU at the end of its training."""
    last = longest_training(rules, len(train[1]), num_classes)
    ((_, state),) = states_in_training(train, rules, num_classes, seed, [last], device)
    return state


def longest_training(rules: Protocol, num_images: int, num_classes: int) -> int:
    """Steps that a training of so many images has, beyond which no point can lie."""
    return plan(budget_of(rules, num_images, num_classes), num_images, 1)[0]


def differentiable(rules: Protocol) -> Protocol:
    """The protocol whose views a gradient passes: without RandAugment's 8 bits, and turns by SciPy."""
    plain = rules.augmentations.model_copy(update={"randaugment_ops": 0, "one_of": ()})
    return rules.model_copy(update={"augmentations": plain})


def load_probe(rules: Protocol, num_classes: int, state: State, device: torch.device) -> Classifier:
    """The network of one point, its values ready to be differentiated by."""
    network = rules.build(num_classes)
    network.load_state_dict(state)
    network.to(device)
    return network.eval()
