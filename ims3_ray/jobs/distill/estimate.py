"""What a stage will cost, for --dry-run: rows, time, disk and memory, from counted operations and a measured
matrix rate.

Estimates, and said to be: within a factor of two on the machines that they were compared on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from ims3_ray.cluster.device_rate import matrix_rate
from ims3_ray.evaluation.protocols import protocols
from ims3_ray.models.classifiers import build
from ims3_ray.models.dit import DiT
from ims3_ray.models.extractor import load_extractor, without_weights
from ims3_ray.models.files import read_json
from ims3_ray.pipeline.steps import Step
from ims3_ray.stages.context import Context

EFFICIENCY = 0.35  # share of the matrix rate that small models reach
RATE_S = 0.25  # over which it is measured
START_S = 6.0  # of a pool of workers
TRAIN_START_S = 15.0  # of Ray Train's workers
PROCESS_BYTES = 5e8  # a worker with torch
BACKWARD = 3  # a training step costs about three forward passes
PNG_BYTES_A_PIXEL = 1.2


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes on disk, and bytes of memory at once over all workers."""

    rows: int
    seconds: float
    disk: float
    memory: float


def estimates(context: Context, steps: list[Step]) -> dict[str, Estimate]:
    """An estimate for every step, by the stage's name."""
    c, machine = context.config, context.machine
    flops, rate = operations_per_image(context), _rate(context) * EFFICIENCY
    counts = context.images["train"].counts()
    tuned = int(counts.clip(max=c.encode.images_per_class or counts.max()).sum())
    images, views = int(counts.sum()), 2 if c.data.mirror else 1
    drawn = c.pool_ipc * len(counts) * c.sample.subgroups
    guided = 1 if c.sample.guidance_scale == 1 else 2
    latent = 2 * context.info.config.in_channels * context.info.config.sample_size**2
    feature = 4 * flops["feature_dim"]
    png = PNG_BYTES_A_PIXEL * context.info.image_size**2
    tuning = tuned // c.finetune.batch_size * c.finetune.batch_size * c.finetune.epochs
    weights = 4.0 * (context.info.transformer_parameters + context.info.vae_parameters)
    work = {  # name: (rows, operations, disk, model bytes a worker)
        "encode": (tuned, tuned * views * flops["encode"], tuned * views * 2 * latent, weights),
        "invert": (
            tuned,
            tuned * views * c.invert.points * flops["dit"],
            tuned * views * c.invert.points * latent,
            weights,
        ),
        "finetune": (tuning, tuning * BACKWARD * flops["dit"], 1e6, 2 * weights),
        "embed": (images, images * flops["embed"], images * feature, 0.0),
        "sample": (
            drawn,
            drawn * (c.sample.steps * guided * flops["dit"] + flops["decode"] + flops["embed"]),
            drawn * (png + feature),
            weights,
        ),
        "select": (len(counts) * c.sample.subgroups, 0.0, 1e4, drawn * feature),
        "export": (c.ipc * len(counts), 0.0, 2 * c.ipc * len(counts) * png, 0.0),
        "evaluate": (*_evaluation(context), 1e5, 0.0),
        "report": (1, 0.0, 2e6, images * feature),
    }
    starts = {"finetune": TRAIN_START_S, "report": 10.0}
    workers = {"finetune": machine.train_workers(c.finetune.micro_batches), "report": 1}
    found = {}
    for step in steps:
        rows, operations, disk, model = work[step.stage.name]
        n = workers.get(step.stage.name, machine.actors)
        seconds = starts.get(step.stage.name, START_S) + operations / (rate * n)
        found[step.stage.name] = Estimate(rows, seconds, disk, n * (PROCESS_BYTES + model))
    return found


def _evaluation(context: Context) -> tuple[int, float]:
    """Classifiers to train, and the operations of all their steps."""
    c = context.config
    if c.evaluate.protocol == "none":
        return 0, 0.0
    classes, operations = len(context.classes), 0.0
    per_set = dict.fromkeys(["distilled", *c.evaluate.baselines], c.ipc * classes)
    if c.evaluate.full:
        per_set["full"] = len(context.images["train"])
    networks = protocols(c.evaluate.protocol, c.evaluate.networks)
    for rules in networks:
        network = build(rules.network, classes, rules.image_size, None, width=rules.width).to("meta")
        one = count_operations(network, torch.zeros(1, 3, rules.image_size, rules.image_size, device="meta"))
        for images in per_set.values():
            budget = rules.budget(max(1, round(images / classes)), classes)
            steps = budget.steps or budget.epochs * -(-images // budget.batch_size)
            operations += c.evaluate.seeds * steps * min(budget.batch_size, images) * BACKWARD * one
    return c.evaluate.seeds * len(per_set) * len(networks), operations


def operations_per_image(context: Context) -> dict[str, Any]:
    """Operations an image: of the DiT's forward pass, the VAE's two halves, and the extractor; and φ's
    dimension.
    """
    info = context.info
    with torch.device("meta"):
        dit, vae = DiT(info.config), AutoencoderKL.from_config(read_json(Path(info.vae_path) / "config.json"))
        z = torch.zeros(1, *info.latent_shape)
        image = torch.zeros(1, 3, info.image_size, info.image_size)
        label = torch.zeros(1, dtype=torch.int64)
    extractor = load_extractor(without_weights(context.config.embed.extractor))
    return {
        "dit": count_operations(dit, z, label, label),
        "encode": count_operations(vae.encode, image),
        "decode": count_operations(vae.decode, z),
        "embed": count_operations(extractor, torch.zeros(1, 3, info.image_size, info.image_size)),
        "feature_dim": extractor.dim,
    }


def _rate(context: Context) -> float:
    """Operations a second of one worker, in float32 where the device of a cluster is not here to be measured."""
    device, dtype = context.numerics.device, context.numerics.dtype
    if device == "cuda" and not torch.cuda.is_available():
        device, dtype = "cpu", torch.float32
    return matrix_rate(device, dtype, seconds=RATE_S)


def count_operations(function: Any, *arguments: torch.Tensor) -> float:
    """Operations of `function(*arguments)`, counted without doing them where the tensors are on the meta
    device.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return float(counter.get_total_flops())
