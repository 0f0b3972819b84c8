"""The declaration of a stage: its artefact, inputs, fingerprint, cost and use of GPUs.

Costs count operations on networks without weights (torch's FlopCounterMode) and bytes from shapes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ims3_ray.cluster.fan_out import CALLS_PER_ACTOR
from ims3_ray.config.sections import PAPER_BATCH
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.method import difffit
from ims3_ray.models.dit import DiT
from ims3_ray.models.extractor import load_extractor, without_weights
from ims3_ray.models.files import read_json
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.disk_cache import REMEDY

from .context import Context

START_S = 6.0  # to start a pool of workers
BACKWARD = 3  # a training step costs about three forward passes
PNG_BYTES_PER_PIXEL = 1.8  # of 3: smooth images take less, small and noisy ones more
KEY_BYTES = 1000.0  # driver memory per row of which it holds the keys only


@dataclass(frozen=True)
class Cost:
    """Work of a stage, and memory and disk that it needs."""

    rows: int
    operations: float = 0.0  # per row; a multiplication and an addition count as two
    disk: float = 0.0  # bytes of the artefact
    memory: float = 0.0  # bytes per worker, beside its process
    driver: float = 0.0  # bytes in the driver, beside its process and the list of images
    start_s: float = START_S
    sent: float = 0.0  # bytes that each worker sends to others


@dataclass(frozen=True)
class Forward:
    """Operations per image of a forward pass through each network, and sizes of the networks."""

    dit: float
    encode: float
    decode: float
    embed: float
    feature_dim: int  # of φ
    trained_values: int  # in fine-tuning


@dataclass(frozen=True)
class GpuUsage:
    """Number of concurrent workers, the GPUs that they hold together, and the reason for not holding all.

    `gpus` is 0 on CPUs and for a stage that needs no GPU. `limit` is "" if nothing limits the stage.
    """

    workers: int
    gpus: int = 0
    limit: str = ""


def no_gpu(context: Context) -> GpuUsage:  # noqa: ARG001
    """Usage of a stage that runs in CPU tasks or in the driver."""
    return GpuUsage(0)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline: a named function that makes one kind of artefact."""

    name: str  # a verb
    output: str  # the kind of artefact, a noun: its folder in the storage
    version: int  # part of the fingerprint; raise it if the written rows change
    # (context, output directory, input directories by kind) → manifest entries, with `rows`
    run: Callable[..., Mapping[str, object]]
    # JSON values that the output depends on, beside the input artefacts
    fingerprint_inputs: Callable[[Context], object]
    cost: Callable[[Context, Forward], Cost]
    gpu_usage: Callable[[Context], GpuUsage] = no_gpu
    # bytes below TMPDIR of each node that works on the stage, and the remedy if they do not fit
    node_disk: Callable[[Context], float] = lambda _: 0.0
    node_disk_remedy: str = REMEDY
    metrics: Callable[[Directory], Mapping[str, float]] = lambda _: {}  # of the artefact, for MLflow
    inputs: tuple[str, ...] = ()  # kinds of artefacts
    unit: str = "images"  # of the rows
    needs_input: Callable[[Context, str], bool] = lambda _context, _kind: True  # if this run makes the input
    is_enabled: Callable[[Context], bool] = lambda _: True


def pool_usage(context: Context, rows: int, rows_per_part: int) -> GpuUsage:
    """Usage of an actor pool: one actor per device, at most one per part."""
    machine = context.machine
    parts = math.ceil(rows / rows_per_part)
    workers = min(machine.actors, parts)
    if not machine.on_gpus or workers >= machine.gpus:
        return _on_devices(context, workers)
    by_parts = f"{parts} {'part' if parts == 1 else 'parts'} of {rows_per_part} images"
    return _on_devices(context, workers, by_parts if workers == parts else f"workers.actors={machine.actors}")


def training_usage(context: Context) -> GpuUsage:
    """Usage of fine-tuning: one worker per device, at most one per micro-batch."""
    machine, parts = context.machine, context.config.finetune.micro_batches
    workers = machine.train_workers(parts)
    if workers >= machine.devices:
        return _on_devices(context, workers)
    if machine.workers.train_workers:
        return _on_devices(context, workers, f"workers.train_workers={workers}")
    return _on_devices(
        context,
        workers,
        f"a batch has {parts} {'part' if parts == 1 else 'parts'}, shared out evenly; "
        f"finetune.batch_size=auto would use all, with {PAPER_BATCH // 2} latents each and a learning rate "
        "to match",
    )


def classifier_usage(context: Context, trainings: int) -> GpuUsage:
    """Usage of classifiers or probes: several share a GPU."""
    machine = context.machine
    if not machine.on_gpus:
        return GpuUsage(min(machine.actors, trainings))
    at_once = math.floor(1 / machine.classifier_share(trainings)) * machine.gpus
    gpus = min(machine.gpus, trainings)
    limit = f"{trainings} to train" if gpus < machine.gpus else ""
    return GpuUsage(min(at_once, trainings), gpus, limit)


def _on_devices(context: Context, workers: int, limit: str = "") -> GpuUsage:
    return GpuUsage(workers, workers, limit) if context.machine.on_gpus else GpuUsage(workers)


def count_forward(context: Context) -> Forward:
    """Operations of the run's networks, counted on the meta device."""
    extractor, side = load_extractor(without_weights(context.config.embed.extractor)), context.image_size
    embed = count_operations(extractor, torch.zeros(1, 3, side, side)), extractor.dim
    if context.generator is None:
        return Forward(0.0, 0.0, 0.0, *embed, 0)
    from diffusers import AutoencoderKL  # takes seconds to import; runs do not need it here

    info = context.info
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(read_json(Path(info.vae_path) / "config.json"))
        dit = DiT(info.config)
        z, label = torch.zeros(1, *info.config.latent_shape), torch.zeros(1, dtype=torch.int64)
        image = torch.zeros(1, 3, info.image_size, info.image_size)
    assert isinstance(vae, AutoencoderKL)  # from_config can also return unused values
    passes = count_operations(dit, z, label, label), count_operations(vae.encode, image)
    decode = count_operations(vae.decode, z)
    difffit.prepare(dit)
    trained = sum(parameter.numel() for parameter in difffit.trainable(dit).values())
    return Forward(*passes, decode, *embed, trained)


def count_operations(function: Callable[..., object], *arguments: torch.Tensor) -> float:
    """Operations of `function(*arguments)`; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return float(counter.get_total_flops())


def classifier_operations(rules: Protocol, num_classes: int) -> float:
    """Operations per image of a forward pass of the protocol's network."""
    image = torch.zeros(1, rules.channels, rules.image_size, rules.image_size, device="meta")
    return count_operations(rules.build(num_classes).to("meta"), image)


def classifier_bytes(rules: Protocol, num_classes: int) -> float:
    """Bytes of the float32 weights of the protocol's network."""
    return 4.0 * sum(parameter.numel() for parameter in rules.build(num_classes).parameters())


def parts_bytes(rows: int, row: float) -> float:
    """Bytes of the parts that an actor holds at once, with their inputs; parts have `rows` rows."""
    return CALLS_PER_ACTOR * 2 * rows * row


def pixel_bytes(images: float, image_size: int) -> float:
    """Bytes of decoded images in uint8."""
    return 3.0 * images * image_size**2


def latent_bytes(context: Context) -> int:
    """Bytes of one latent in float16."""
    channels, height, width = context.info.config.latent_shape
    return 2 * channels * height * width


def png_bytes(context: Context) -> float:
    return PNG_BYTES_PER_PIXEL * context.image_size**2


def generator_bytes(context: Context) -> float:
    """Bytes of the generator's weights in float32."""
    info = context.generator
    return 4.0 * (info.transformer_parameters + info.vae_parameters) if info else 0.0
