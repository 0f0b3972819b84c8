"""Train the teacher of a soft protocol on the real training images, and hold any teacher against them.

An artefact of its own, which runs share: it depends on the real images and on nothing that is drawn.
"""

from collections.abc import Sequence

import numpy as np
import ray
import safetensors.torch
import torch

from ims3_ray.cluster.resources import DEFAULT_PLACEMENT, Machine
from ims3_ray.config.evaluation import Evaluate
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import pixels_bytes
from ims3_ray.errors import InputError
from ims3_ray.evaluation.probes import longest_training, trained
from ims3_ray.evaluation.protocols import NO_PROTOCOL, protocol
from ims3_ray.evaluation.rules import Protocol
from ims3_ray.evaluation.scoring import answers
from ims3_ray.evaluation.teacher import WEIGHTS, Teacher, Trained, check_teacher, load_teacher, teacher_rules
from ims3_ray.models.device import prepare_device
from ims3_ray.stages.base import BACKWARD, Cost, Forward, Stage, classifier_operations, classifier_usage
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .classifiers import clear, pixels_of

SEED = -1  # no classifier has it: a student begins with other weights than its teacher did
CHECKED = 100  # real images a class that a teacher is held against
STAND_BESIDE = {"random", "medoids"}  # with soft labels random images come close to everything


def is_soft(settings: Evaluate) -> bool:
    """Whether classifiers learn a teacher's answers."""
    return settings.protocol != NO_PROTOCOL and protocol(settings.protocol).is_soft


def check_settings(settings: Evaluate, trains: bool) -> None:
    """InputError for a soft protocol without its baselines or a teacher, and a teacher that nobody asks.

    `trains`: whether one is trained where none is named.
    """
    if settings.teacher is not None and not is_soft(settings):
        raise InputError(
            f"evaluate.teacher: protocol {settings.protocol} has hard labels; leave it out, or choose a soft "
            "protocol, such as evaluate.protocol=soft"
        )
    if is_soft(settings) and settings.teacher is None and not trains:
        raise InputError(
            f"evaluate.teacher: protocol {settings.protocol} needs one, which only a run would train; name "
            "timm:NAME, a folder, or package://digits"
        )
    if is_soft(settings) and (missing := STAND_BESIDE - set(settings.baselines)):
        raise InputError(
            f"evaluate.baselines: with soft labels real images come close to everything, and here is no "
            f"{' and no '.join(sorted(missing))}; give evaluate.baselines=[random,medoids]"
        )


def run(context: Context, out: Directory) -> dict[str, object]:
    """Write teacher.safetensors."""
    train, rules = context.images["train"], teacher_rules(context.config.evaluate.protocol)
    work = ray.remote(**context.machine.classifier_resources(1), **DEFAULT_PLACEMENT)(_train)
    ray.get(work.remote(train, rules, context.machine.device, out))
    clear([train], {rules.image_size}, context.machine)
    return {"rows": 1}


def _train(images: ImageSet, rules: Protocol, kind: str, out: Directory) -> None:
    device, num_classes = prepare_device(kind), len(images.classes)
    with pixels_of(images, rules.image_size) as train:
        state = trained(train, rules, num_classes, SEED, device)
    out.write(WEIGHTS, safetensors.torch.save(state))


def teacher_of(
    settings: Evaluate, images: ImageSet, trained: Directory | None, machine: Machine
) -> Teacher | None:
    """The teacher of a soft protocol, held against training images; None for hard labels.

    InputError where its classes are not ours, in number or order.
    """
    if not is_soft(settings):
        return None
    given = settings.teacher
    if given is None:
        assert trained is not None
        given = Trained(teacher_rules(settings.protocol), trained)
    rules = protocol(settings.protocol)
    held = images.take(images.subset(CHECKED, "teacher", 0))
    work = ray.remote(**machine.classifier_resources(1), **DEFAULT_PLACEMENT)(_answers)
    given_labels, labels = ray.get(work.remote(given, held, rules, images.classes, machine.device))
    clear([held], {rules.image_size}, machine)
    return Teacher(given, check_teacher(given_labels, labels, images.classes))


def _answers(
    given: str | Trained, images: ImageSet, rules: Protocol, classes: Sequence[str], kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's answers to the readable images, and their labels."""
    device = prepare_device(kind)
    answer = load_teacher(given, rules, classes, device)
    with pixels_of(images, rules.image_size) as (pixels, labels):
        labelled = [logits.argmax(dim=1).cpu() for logits in answers(answer, pixels, rules, device)]
        return torch.cat(labelled).numpy(), labels.numpy().copy()


def _fingerprint_inputs(context: Context) -> object:
    rules = teacher_rules(context.config.evaluate.protocol)
    how = rules.model_dump(mode="json", exclude={"name", "version", "split", "evaluations"})
    return [context.inputs["images"], how, context.machine.device]


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    rules, train = teacher_rules(context.config.evaluate.protocol), context.images["train"]
    steps = longest_training(rules, len(train), len(context.classes))
    operations = BACKWARD * classifier_operations(rules, len(context.classes)) * rules.batch_size * steps
    return Cost(1, operations, disk=1e7, memory=_node_disk(context))


def _node_disk(context: Context) -> float:
    rules = teacher_rules(context.config.evaluate.protocol)
    return pixels_bytes(len(context.images["train"]), rules.image_size)


STAGE = Stage(
    name="teacher",
    output="teacher",
    version=2,
    unit="networks",
    is_enabled=lambda context: is_soft(context.config.evaluate) and context.config.evaluate.teacher is None,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=lambda context: classifier_usage(context, 1),
    node_disk=_node_disk,
)
