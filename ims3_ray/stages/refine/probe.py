"""Stage probe: train networks on the real images, and keep each at several points of its training.

Runs share the artefact, since it depends only on the real images.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import ray
import safetensors.torch
import torch

from ims3_ray.cluster.tasks import stream_jobs
from ims3_ray.config.evaluation import SEEDS_PER_RUN, Probe
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import pixels_bytes
from ims3_ray.errors import InputError
from ims3_ray.evaluation.probes import load_probe, train_checkpoints
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.models.classifiers import Classifier
from ims3_ray.models.device import prepare_device
from ims3_ray.progress import bar
from ims3_ray.stages.base import BACKWARD, Cost, Forward, Stage, classifier_operations, classifier_usage
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.classifiers import open_pixels, remove_local_pixels
from ims3_ray.storage.artifacts import Directory, read_checked
from ims3_ray.storage.checksums import BLANK, KEY, embed_checksum
from ims3_ray.storage.integrity import intact_parts


class Network(NamedTuple):
    """A network to train: its protocol, seed and file."""

    rules: Protocol
    seed: int
    file: str


def run(context: Context, out: Directory) -> dict[str, object]:
    """Write one file per network, with its state at every point. Intact files are not made again."""
    settings, train = context.config.probe, context.images["train"]
    kinds, seed = context.probe_kinds, context.config.seed
    networks = [
        Network(rules, seed_of(seed, number), file_of(rules, number))
        for rules in kinds
        for number in range(settings.count)
    ]
    intact = {name for name, _ in intact_parts(out, [network.file for network in networks])}
    missing = [network for network in networks if network.file not in intact]
    images = ray.put(train)
    resources = context.machine.classifier_resources(max(1, len(missing)))
    shared = len(context.classes), settings.checkpoint_steps, context.machine.device, out
    jobs = [(images, network, *shared) for network in missing]
    with bar("probe", len(networks), "networks", done=len(networks) - len(missing)) as progress_bar:
        for _ in stream_jobs(_train, jobs, **resources):
            progress_bar.update(1)
    remove_local_pixels([train], {rules.image_size for rules in kinds}, context.machine)
    return {"rows": len(networks), "rows_made": len(missing)}


def seed_of(seed: int, number: int) -> int:
    """Return a network's seed: below 0, so that no classifier of the evaluation starts from its weights."""
    return -(2 + seed * SEEDS_PER_RUN + number)  # -1 is the teacher's


def file_of(rules: Protocol, number: int) -> str:
    """Return the file of a network's states."""
    return f"{rules.network}-{number:03d}.safetensors"


def load_probes(
    probes: Directory, kinds: Sequence[Protocol], settings: Probe, num_classes: int, device: torch.device
) -> list[Classifier]:
    """Load every network at every point, kind by kind, to the device."""
    loaded = []
    for rules in kinds:
        for number in range(settings.count):
            values = safetensors.torch.load(read_checked(probes, file_of(rules, number)))
            for point in settings.checkpoint_steps:
                names = [name for name in values if name.startswith(f"{point}/")]
                state = {name.removeprefix(f"{point}/"): values[name] for name in names}
                loaded.append(load_probe(rules, num_classes, state, device))
    return loaded


def _train(
    images: ImageSet, network: Network, num_classes: int, points: tuple[int, ...], kind: str, out: Directory
) -> Iterator[str]:
    rules, device = network.rules, prepare_device(kind)
    with open_pixels(images, rules.image_size) as train:
        states = train_checkpoints(train, rules, num_classes, network.seed, points, device)
        values = {f"{point}/{name}": value for point, state in states for name, value in state.items()}
    if not all(bool(torch.isfinite(value).all()) for value in values.values()):
        raise InputError(
            f"probe.networks: the training of {rules.network} by {rules.name} led to values "
            "that are not finite; set another network or protocol"
        )
    data = safetensors.torch.save(values, metadata={KEY: BLANK})
    out.write(network.file, embed_checksum(data, network.file))
    yield network.file


def _fingerprint_inputs(context: Context) -> object:
    config = context.config
    kinds = [
        rules.model_dump(mode="json", exclude={"name", "version", "split", "evaluations"})
        for rules in context.probe_kinds
    ]
    settings = [config.probe.count, list(config.probe.checkpoint_steps), config.seed]
    return [context.inputs["images"], kinds, settings, context.machine.device]


def _cost(context: Context, forward: Forward) -> Cost:  # noqa: ARG001
    settings, num_classes = context.config.probe, len(context.classes)
    kinds = context.probe_kinds
    operations = sum(
        BACKWARD
        * classifier_operations(rules, num_classes)
        * rules.batch_size
        * settings.checkpoint_steps[-1]
        for rules in kinds
    )
    rows = _num_networks(context)
    return Cost(rows, operations / len(kinds), disk=1e6 * rows, memory=_node_disk(context))


def _num_networks(context: Context) -> int:
    return context.config.probe.count * len(context.probe_kinds)


def _node_disk(context: Context) -> float:
    return pixels_bytes(len(context.images["train"]), context.probe_kinds[0].image_size)


STAGE = Stage(
    name="probe",
    output="probes",
    version=3,
    unit="networks",
    is_enabled=lambda context: context.config.refine.steps > 0 and context.config.probe.count > 0,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=lambda context: classifier_usage(context, _num_networks(context)),
    node_disk=_node_disk,
)
