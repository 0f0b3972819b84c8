"""Networks trained on real images by a protocol, with checkpoints: the probes of refinement."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ims3_ray.config.evaluation import Probe
from ims3_ray.errors import InputError
from ims3_ray.models.classifiers import Classifier

from .inference import Device, forward_fn, numerics_for
from .protocols import NO_PROTOCOL, VALIDATION, Protocol, get_protocol, get_protocols
from .train import Labelled, budget_for, generator_for, plan, resident, training_steps

State = dict[str, Tensor]


def probe_protocols(settings: Probe, evaluated: str) -> list[Protocol]:
    """Protocols of the probes: `probe.protocol`, or the run's own (`evaluated`), with each probe network.

    The scored split has no effect on a probe; dropping it keeps the split out of fingerprints.
    """
    name = (settings.protocol or evaluated).removesuffix(VALIDATION)
    width = {"width": settings.width} if settings.width else {}
    return [protocol.model_copy(update=width) for protocol in get_protocols(name, settings.networks)]


def check_probe_protocol(settings: Probe, evaluated: str) -> None:
    """Raise InputError if the probes' protocol has no hard labels."""
    name = settings.protocol or evaluated
    if name == NO_PROTOCOL or get_protocol(name).is_soft:
        raise InputError(
            f"probe.protocol: {name} has no hard labels, probes need them; set one, such as quick"
        )


def train_checkpoints(
    train: Labelled, protocol: Protocol, num_classes: int, seed: int, points: Sequence[int], device: Device
) -> Iterator[tuple[int, State]]:
    """(steps done, network values on the CPU) at each of the ascending `points`; training then stops."""
    images, labels = resident(train[0], torch.device(device)), train[1].to(device)
    model = protocol.build(num_classes, generator_for(seed, "weights")).to(device)
    budget = budget_for(protocol, len(labels), num_classes)
    forward = forward_fn(model, numerics_for(labels.device.type, points[-1]))
    training = training_steps(model, forward, (images, labels), protocol, budget, seed)
    done = 0
    for point in points:
        while done < point:
            next(training)
            done += 1
        yield done, {name: _copy(value) for name, value in model.state_dict().items()}


def _copy(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU, for safetensors: on a GPU, weights are channels last."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def num_training_steps(protocol: Protocol, num_images: int, num_classes: int) -> int:
    """Optimiser steps of a training on `num_images` images."""
    return plan(budget_for(protocol, num_images, num_classes), num_images, 1)[0]


def differentiable(protocol: Protocol) -> Protocol:
    """The protocol without the augmentations that block gradients: RandAugment's 8 bits, SciPy's rotation."""
    views = protocol.augmentations.model_copy(update={"randaugment_ops": 0, "one_of": ()})
    return protocol.model_copy(update={"augmentations": views})


def load_probe(protocol: Protocol, num_classes: int, state: State, device: torch.device) -> Classifier:
    """The network of one checkpoint, in evaluation mode."""
    network = protocol.build(num_classes)
    network.load_state_dict(state)
    network.to(device)
    return network.eval()
