"""Train the teacher of a soft protocol on the real training images, and check any teacher against them.

The artefact depends on the real images only, so runs on the same images share it.
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
from ims3_ray.evaluation.inference import predict_batches
from ims3_ray.evaluation.probes import num_training_steps, train_checkpoints
from ims3_ray.evaluation.protocols import NO_PROTOCOL, Protocol, get_protocol
from ims3_ray.evaluation.teacher import (
    WEIGHTS,
    Teacher,
    TeacherSource,
    TrainedTeacher,
    check_teacher,
    load_teacher,
    teacher_protocol,
)
from ims3_ray.models.device import prepare_device
from ims3_ray.stages.base import BACKWARD, Cost, Forward, Stage, classifier_operations, classifier_usage
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory

from .classifiers import open_pixels, remove_local_pixels

SEED = -1  # used by no classifier: students start from other weights than their teacher
CHECK_IMAGES = 100  # real images per class
REQUIRED_BASELINES = {"random", "medoids"}  # with soft labels, random images score nearly as well as any


def is_soft(settings: Evaluate) -> bool:
    """Whether classifiers learn a teacher's answers."""
    return settings.protocol != NO_PROTOCOL and get_protocol(settings.protocol).is_soft


def check_settings(settings: Evaluate, trains: bool) -> None:
    """Raise InputError for a soft protocol without its baselines or teacher, or an unused teacher.

    `trains`: the run trains a teacher if none is named.
    """
    if settings.teacher is not None and not is_soft(settings):
        raise InputError(
            f"evaluate.teacher: protocol {settings.protocol} has hard labels; leave it out, or choose a soft "
            "protocol, such as evaluate.protocol=soft"
        )
    if is_soft(settings) and settings.teacher is None and not trains:
        raise InputError(
            f"evaluate.teacher: protocol {settings.protocol} needs one, and only a run trains one; name "
            "timm:NAME, a folder, or package://digits"
        )
    if is_soft(settings) and (missing := REQUIRED_BASELINES - set(settings.baselines)):
        raise InputError(
            f"evaluate.baselines: soft-label accuracies mean little without {' and '.join(sorted(missing))}; "
            "give evaluate.baselines=[random,medoids]"
        )


def run(context: Context, out: Directory) -> dict[str, object]:
    """Write teacher.safetensors."""
    train, protocol = context.images["train"], teacher_protocol(context.config.evaluate.protocol)
    task = ray.remote(**context.machine.classifier_resources(1), **DEFAULT_PLACEMENT)(_train)
    ray.get(task.remote(train, protocol, context.machine.device, out))
    remove_local_pixels([train], {protocol.image_size}, context.machine)
    return {"rows": 1}


def _train(images: ImageSet, protocol: Protocol, kind: str, out: Directory) -> None:
    device, num_classes = prepare_device(kind), len(images.classes)
    with open_pixels(images, protocol.image_size) as train:
        steps = num_training_steps(protocol, len(train[1]), num_classes)
        ((_, state),) = train_checkpoints(train, protocol, num_classes, SEED, [steps], device)
    out.write(WEIGHTS, safetensors.torch.save(state))


def teacher_of(
    settings: Evaluate, images: ImageSet, trained: Directory | None, machine: Machine
) -> Teacher | None:
    """The teacher of a soft protocol, checked against training images; None for hard labels.

    Raises InputError if the number or order of its classes differs.
    """
    if not is_soft(settings):
        return None
    source: TeacherSource | None = settings.teacher
    if source is None:
        assert trained is not None
        source = TrainedTeacher(teacher_protocol(settings.protocol), trained)
    protocol = get_protocol(settings.protocol)
    subset = images.take(images.subset(CHECK_IMAGES, "teacher", 0))
    task = ray.remote(**machine.classifier_resources(1), **DEFAULT_PLACEMENT)(_predict)
    predictions, labels = ray.get(task.remote(source, subset, protocol, images.classes, machine.device))
    remove_local_pixels([subset], {protocol.image_size}, machine)
    return Teacher(source, check_teacher(predictions, labels, images.classes))


def _predict(
    source: TeacherSource, images: ImageSet, protocol: Protocol, classes: Sequence[str], kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's predictions for the readable images, and their labels."""
    device = prepare_device(kind)
    teacher = load_teacher(source, protocol, classes, device)
    with open_pixels(images, protocol.image_size) as (pixels, labels):
        batches = predict_batches(teacher, pixels, protocol, device)
        predictions = torch.cat([logits.argmax(dim=1).cpu() for logits in batches])
        return predictions.numpy(), labels.numpy().copy()


def _fingerprint_inputs(context: Context) -> object:
    protocol = teacher_protocol(context.config.evaluate.protocol)
    values = protocol.model_dump(mode="json", exclude={"name", "version", "split", "evaluations"})
    return [context.inputs["images"], values, context.machine.device]


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    protocol, train = teacher_protocol(context.config.evaluate.protocol), context.images["train"]
    steps = num_training_steps(protocol, len(train), len(context.classes))
    per_image = BACKWARD * classifier_operations(protocol, len(context.classes))
    return Cost(1, per_image * protocol.batch_size * steps, disk=1e7, memory=_node_disk(context))


def _node_disk(context: Context) -> float:
    protocol = teacher_protocol(context.config.evaluate.protocol)
    return pixels_bytes(len(context.images["train"]), protocol.image_size)


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
