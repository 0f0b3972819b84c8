"""Numbers of a recipe that must fit its images, its generator and each other."""

from ims3_ray.errors import InputError
from ims3_ray.evaluation.probes import longest_training, probe_protocols
from ims3_ray.evaluation.protocols import NO_PROTOCOL, protocols
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.classifiers import check_networks
from ims3_ray.stages.evaluate.teacher import check_settings, is_soft
from ims3_ray.stages.sample.anchors import check_anchors
from ims3_ray.stages.sample.timesteps import check_intervals


def check_numbers(context: Context) -> None:
    """InputError, with the field, for the first number that does not fit."""
    _check_images(context)
    _check_evaluation(context)
    _check_refinement(context)


def _check_images(context: Context) -> None:
    config, counts = context.config, context.images["train"].counts()
    smallest = int(counts.argmin())
    needed, why = config.ipc, f"ipc={config.ipc}"
    if config.evaluate.protocol != NO_PROTOCOL and config.evaluate.neighbours + 1 > needed:
        needed, why = config.evaluate.neighbours + 1, f"evaluate.neighbours={config.evaluate.neighbours}"
    if counts[smallest] < needed:
        raise InputError(
            f"data.train: class {context.classes[smallest]!r} has {counts[smallest]} images, "
            f"{why} needs {needed}; add images or lower it"
        )
    channels, guided = context.info.config.in_channels, config.sample.guidance_channels
    if guided > channels:
        raise InputError(f"sample.guidance_channels: {guided} of {channels} latent channels; lower it")
    check_anchors(context)
    check_intervals(config)
    tuned, batch = context.num_tuned, config.finetune.latents
    if config.finetune.epochs and tuned < batch:
        raise InputError(f"finetune.batch_size: {batch} is more than the {tuned} images to tune on; lower it")


def _check_evaluation(context: Context) -> None:
    config, settings = context.config, context.config.evaluate
    if config.export.soft_labels and not is_soft(settings):
        raise InputError(
            f"export.soft_labels: evaluate.protocol={settings.protocol} has no teacher who would give them; "
            "choose a soft protocol, such as evaluate.protocol=soft-32, or leave them out"
        )
    if settings.protocol == NO_PROTOCOL:
        return
    check_settings(settings, trains=True)
    check_networks(protocols(settings.protocol, settings.networks), len(context.classes))
    pool = config.pool_ipc * config.sample.subgroups
    if (settings.pool_images or 0) > pool:
        raise InputError(
            f"evaluate.pool_images: {settings.pool_images} a class are more than the pool's {pool} "
            "(images a subgroup times sample.subgroups); lower it, or sample more"
        )


def _check_refinement(context: Context) -> None:
    config, settings, probe = context.config, context.config.refine, context.config.probe
    if not settings.steps:
        return
    if NO_PROTOCOL in (probe.protocol, probe.protocol or config.evaluate.protocol):
        raise InputError("probe.protocol: probes are trained by a protocol; name one, such as quick")
    try:
        kinds = probe_protocols(probe, config.evaluate.protocol)
        check_networks(kinds, len(context.classes))
    except InputError as error:
        raise InputError(f"probe.networks: {error}") from error
    if kinds[0].is_soft:
        raise InputError(f"probe.protocol: probes learn hard labels, {kinds[0].name} has none; name another")
    counts = context.images["train"].counts()
    smallest = int(counts.argmin())
    if (settings.real_images or 0) > counts[smallest]:
        raise InputError(
            f"refine.real_images: {settings.real_images} are more than the {counts[smallest]} images of "
            f"class {context.classes[smallest]!r}; lower it"
        )
    steps = min(longest_training(rules, int(counts.sum()), len(counts)) for rules in kinds)
    if probe.checkpoint_steps[-1] > steps:
        raise InputError(
            f"probe.checkpoint_steps: {probe.checkpoint_steps[-1]} exceeds a training by {kinds[0].name}, "
            f"which has {steps} steps; lower it"
        )
