"""How many of the machine's GPUs a stage keeps at work, and why not all of them."""

import math
from dataclasses import dataclass

from ims3_ray.config.finetune import PAPER_BATCH

from .context import Context


@dataclass(frozen=True)
class Use:
    """Workers at once, the GPUs that they hold together, and what keeps it from holding more: "" if nothing.

    On CPUs, and of a stage that needs no GPU, `gpus` is 0.
    """

    workers: int
    gpus: int = 0
    limit: str = ""


def no_gpu(context: Context) -> Use:  # noqa: ARG001
    """Of a stage whose work is done by tasks on CPUs, or by the driver itself."""
    return Use(0)


def pool_use(context: Context, rows: int, a_part: int) -> Use:
    """Of an actor pool: an actor a device, as far as there are parts of `a_part` rows."""
    machine = context.machine
    parts = math.ceil(rows / a_part)
    workers = min(machine.actors, parts)
    if not machine.on_gpus or workers >= machine.gpus:
        return _on_devices(context, workers)
    by_parts = f"{parts} {'part' if parts == 1 else 'parts'} of {a_part} images"
    return _on_devices(context, workers, by_parts if workers == parts else f"workers.actors={machine.actors}")


def training_use(context: Context) -> Use:
    """Of fine-tuning: a worker a device, as far as a batch has parts for them."""
    machine, parts = context.machine, context.config.finetune.micro_batches
    workers = machine.train_workers(parts)
    if workers >= machine.devices:
        return _on_devices(context, workers)
    if machine.workers.train_workers:
        return _on_devices(context, workers, f"workers.train_workers={workers}")
    counted = "part" if parts == 1 else "parts"
    return _on_devices(
        context,
        workers,
        f"a batch has {parts} {counted}, shared out evenly; finetune.batch_size=auto would use all, "
        f"with {PAPER_BATCH // 2} latents each and a learning rate to match",
    )


def classifiers_use(context: Context, trainings: int) -> Use:
    """Of classifiers or probes: each its share of a GPU."""
    machine = context.machine
    if not machine.on_gpus:
        return Use(min(machine.actors, trainings))
    at_once = math.floor(1 / machine.classifier_share(trainings)) * machine.gpus
    gpus = min(machine.gpus, trainings)
    return Use(min(at_once, trainings), gpus, f"{trainings} to train" if gpus < machine.gpus else "")


def _on_devices(context: Context, workers: int, limit: str = "") -> Use:
    return Use(workers, workers, limit) if context.machine.on_gpus else Use(workers)
