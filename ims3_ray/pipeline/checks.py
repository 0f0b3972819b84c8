"""Checks of a prepared run: numbers that fit its images and models, environments, disk space, idle GPUs."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ims3_ray.cluster.environment import machine_environment, stages_by_environment
from ims3_ray.cluster.resources import Machine, run_on_every_node
from ims3_ray.errors import InputError
from ims3_ray.evaluation.probes import check_probe_protocol, num_training_steps, probe_protocols
from ims3_ray.evaluation.protocols import NO_PROTOCOL, get_protocols
from ims3_ray.stages.base import Stage
from ims3_ray.stages.context import Context
from ims3_ray.stages.evaluate.classifiers import check_networks
from ims3_ray.stages.evaluate.teacher import check_settings, is_soft
from ims3_ray.stages.sample.stage import check_interval
from ims3_ray.storage.disk_cache import check_disk_space

from .steps import Step

EFFECT = "some pixels may differ by a grey level from those of a single environment"


def check_numbers(context: Context) -> None:
    """Raise InputError, naming the field, for the first number that does not fit."""
    _check_images(context)
    _check_evaluation(context)
    _check_refinement(context)
    _check_packing(context)


def _check_images(context: Context) -> None:
    config, counts = context.config, context.images["train"].counts()
    smallest = int(counts.argmin())
    needed, field = config.unpacked_ipc, f"ipc={config.ipc}"
    if config.packing.factor > 1:
        field += f" × packing.factor² = {needed}"
    is_drawn, unit = config.makes_candidates, config.select.unit
    if is_drawn and config.source == "real" and unit == "subgroup" and config.pool_ipc > needed:
        needed, field = config.pool_ipc, f"sample.pool_ipc={config.pool_ipc}"
    if config.evaluate.protocol != NO_PROTOCOL and config.evaluate.neighbours + 1 > needed:
        needed, field = config.evaluate.neighbours + 1, f"evaluate.neighbours={config.evaluate.neighbours}"
    if is_drawn and config.select.exclude_copies and needed < 2:
        needed, field = 2, "select.exclude_copies"
    if counts[smallest] < needed:
        raise InputError(
            f"data.train: class {context.classes[smallest]!r} has {counts[smallest]} images, "
            f"{field} needs {needed}; add images or lower it"
        )
    if context.generator is None:
        return
    channels, guided = context.info.config.in_channels, config.sample.guidance_channels
    if guided > channels:
        raise InputError(f"sample.guidance_channels: {guided} exceeds {channels} latent channels; lower it")
    check_interval(config)
    tuned, batch = context.num_tuned, config.finetune.latents
    if config.is_tuned and tuned < batch:
        raise InputError(f"finetune.batch_size: {batch} exceeds the {tuned} images to tune on; lower it")


def _check_evaluation(context: Context) -> None:
    config, settings = context.config, context.config.evaluate
    if config.export.soft_labels and not is_soft(settings):
        raise InputError(
            f"export.soft_labels: evaluate.protocol={settings.protocol} has no teacher; "
            "use a soft protocol, such as evaluate.protocol=soft-32, or set export.soft_labels=0"
        )
    if settings.protocol == NO_PROTOCOL:
        return
    check_settings(settings, trains=True)
    check_networks(get_protocols(settings.protocol, settings.networks), len(context.classes))
    pool = config.pool_ipc * config.sample.subgroups
    if (settings.pool_images or 0) > pool:
        raise InputError(
            f"evaluate.pool_images: {settings.pool_images} per class exceed the pool's {pool} "
            "(images per subgroup × sample.subgroups); lower it, or sample more"
        )


def _check_refinement(context: Context) -> None:
    config, settings, probe = context.config, context.config.refine, context.config.probe
    if not settings.steps:
        return
    check_probe_protocol(probe, config.evaluate.protocol)
    try:
        probes = probe_protocols(probe, config.evaluate.protocol)
        check_networks(probes, len(context.classes))
    except InputError as error:
        raise InputError(f"probe.networks: {error}") from error
    counts = context.images["train"].counts()
    smallest = int(counts.argmin())
    for field, count in (("real_images", settings.real_images), ("real_batch", settings.real_batch)):
        if (count or 0) > counts[smallest]:
            raise InputError(
                f"refine.{field}: {count} exceed the {counts[smallest]} images of "
                f"class {context.classes[smallest]!r}; lower it"
            )
    steps = min(num_training_steps(rules, int(counts.sum()), len(counts)) for rules in probes)
    if probe.count and probe.checkpoint_steps[-1] > steps:
        raise InputError(
            f"probe.checkpoint_steps: {probe.checkpoint_steps[-1]} exceeds a training by {probes[0].name}, "
            f"which has {steps} steps; lower it"
        )


def _check_packing(context: Context) -> None:
    factor, size = context.config.packing.factor, context.stored_size
    if factor > 1 and size % factor:
        raise InputError(
            f"packing.factor: {factor} does not divide the stored images' {size} pixels per side; "
            f"set image_size={size // factor * factor}, or another factor"
        )
    if factor > 1 and context.config.export.soft_labels:
        raise InputError(
            "export.soft_labels: views are stored for images that are not packed; set packing.factor=1"
        )


def check_environments(machine: Machine, steps: Sequence[Step]) -> list[str]:
    """Warnings if artefacts, or nodes, have different environments (device model, torch).

    Artefacts of earlier versions recorded no environment and are not compared. Raises InputError instead if
    workers.strict is set.
    """
    lines = [line for line in (_mixed_stages(machine, steps), _mixed_nodes(machine, steps)) if line]
    if lines and machine.workers.strict:
        raise InputError(
            f"workers.strict: environments differ: {'; '.join(lines)}; run on the same kind of machine, "
            "choose another storage=…, or set workers.strict=false"
        )
    return [f"warning: {line}; {EFFECT} (workers.strict=true makes this an error)" for line in lines]


def _mixed_stages(machine: Machine, steps: Iterable[Step]) -> str:
    steps = list(steps)
    stages_of = stages_by_environment(step.manifest for step in steps if step.manifest)
    if missing := [step.stage.name for step in steps if step.manifest is None]:
        stages_of.setdefault(machine_environment(machine).name, []).extend(missing)
    if len(stages_of) < 2:
        return ""
    return "; ".join(f"{', '.join(dict.fromkeys(stages))} on {name}" for name, stages in stages_of.items())


def _mixed_nodes(machine: Machine, steps: Iterable[Step]) -> str:
    nodes = Counter(environment.name for environment in machine.environments)
    if len(nodes) < 2 or all(step.manifest for step in steps):
        return ""
    return f"nodes differ: {', '.join(f'{number} of {name}' for name, number in nodes.items())}"


def check_node_disks(missing: Iterable[tuple[Context, Stage]]) -> None:
    """Raise InputError if a stage's files do not fit the local disk of a node that may run it."""
    largest: dict[str, tuple[float, Context, Stage]] = {}
    for context, stage in missing:
        needed = stage.node_disk(context)
        if needed > largest.get(stage.name, (0.0,))[0]:
            largest[stage.name] = needed, context, stage
    for needed, context, stage in largest.values():
        run_on_every_node(context.machine, check_disk_space, needed, stage.node_disk_remedy)


def idle_gpu_notes(context: Context, stage: Stage) -> list[str]:
    """A line that says why a stage leaves GPUs idle; none if it uses all."""
    usage = stage.gpu_usage(context)
    return (
        [f"{stage.name}: {usage.gpus} of {context.machine.gpus} GPUs: {usage.limit}"] if usage.limit else []
    )
