"""Stage finetune: tune the generator by inversion matching (Eq. 4–7). Writes an adapter."""

from functools import partial
from typing import Any

from ims3_ray.cluster.train import Training, train
from ims3_ray.config.sections import Finetune
from ims3_ray.data.classes import NEW
from ims3_ray.models.training import TrainingConfig
from ims3_ray.stages.base import BACKWARD, Cost, Forward, Stage, generator_bytes, latent_bytes, training_usage
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import Directory, read_manifest

from .batch import REMEDY, LatentSource
from .task import InversionMatchingTask


def run(
    context: Context, out: Directory, latents: Directory, inversions: Directory | None = None
) -> dict[str, Any]:
    """Tune DiffFit's parameters on the latents; log each loss term, unweighted, and gradient ratios."""
    config = context.config
    settings = config.finetune
    manifest = read_manifest(latents)
    assert manifest, "latents are read when they are complete"
    steps = num_steps(settings, manifest["rows"])
    arguments = task_arguments(context, latents, inversions)
    arguments["source"].load_metadata()
    training = Training(
        name=f"finetune-{out.name}",
        build=InversionMatchingTask,
        arguments=arguments,
        optimisation=optimisation(settings, steps),
        out=out,
        checkpoints=context.storage / "checkpoints",
        batch_field="finetune.batch_size",
    )
    history = train(training, context.machine, "finetune", partial(context.on_metrics, "finetune"))
    return {
        "rows": steps * settings.latents,
        "history": history,
        # to load the adapter
        "own_classes": list(context.classes) if config.data.class_map == NEW else None,
        "frequency_shift": config.model.frequency_shift,
    }


def num_steps(settings: Finetune, num_images: int) -> int:
    """Return the steps of all epochs over `num_images` images, at most `settings.steps`."""
    steps = settings.epochs * (num_images // settings.latents)
    return steps if settings.steps is None else min(steps, settings.steps)


def local_bytes(context: Context) -> float:
    """Return the bytes of each node's cache: mean, log-variance and inversions of every view of an image."""
    points = context.config.invert.steps if context.matches_trajectories else 0
    return context.num_tuned * (context.num_views * (2 + points) * latent_bytes(context) + 8.0)


def task_arguments(context: Context, latents: Directory, inversions: Directory | None) -> dict[str, Any]:
    """Return the constructor arguments of `InversionMatchingTask`, except the device."""
    config = context.config
    by_place = config.finetune.labels == "position"
    labels = list(range(len(context.classes))) if by_place else context.model_labels
    source = LatentSource(latents, inversions, config.data.mirror, config.invert.steps, labels)
    model = context.tuned_model()
    return {
        "model": model,
        "source": source,
        "finetune": config.finetune,
        "im": config.im,
        "seed": config.seed,
    }


def optimisation(settings: Finetune, steps: int) -> TrainingConfig:
    """Return `settings` in the form of the training loop."""
    shared = settings.model_dump(exclude={"epochs", "steps", "labels", "label_dropout", "batch_size"})
    return TrainingConfig(steps=steps, batch_size=settings.latents, **shared)


def _fingerprint_inputs(context: Context) -> object:
    config = context.config
    settings = config.finetune.model_dump(mode="json", exclude={"checkpoint_every"})
    return [settings, config.im.model_dump(mode="json"), config.seed, context.generator_values()]


def _cost(context: Context, forward: Forward) -> Cost:
    settings, steps = context.config.finetune, num_steps(context.config.finetune, context.num_tuned)
    workers = training_usage(context).workers
    per_value = (settings.micro_batches / workers + 1) * (workers - 1) / workers  # see `sum_in_order`
    return Cost(
        rows=steps * settings.latents,
        operations=BACKWARD * forward.dit,
        disk=1e6,
        memory=2 * generator_bytes(context) + 16.0 * context.num_tuned,
        start_s=15.0,  # of Ray Train's workers
        sent=4.0 * forward.trained_values * per_value * steps,
    )


STAGE = Stage(
    name="finetune",
    output="adapter",
    version=5,
    inputs=("latents", "inversions"),
    needs_input=lambda context, noun: noun == "latents" or context.matches_trajectories,
    is_enabled=lambda context: context.config.is_tuned,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=training_usage,
    node_disk=local_bytes,
    node_disk_remedy=REMEDY,
)
