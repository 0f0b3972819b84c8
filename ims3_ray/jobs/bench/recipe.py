"""The run that a stage's bench works on: a recipe's, or one with random weights and images of a size."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

from ims3_ray.cluster.device_benchmark import DeviceFigures
from ims3_ray.cluster.resources import check_device, connect, find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.stages.context import Context

from . import models
from .figures import Figures, device_figures, origin

TUNED_AT_ONCE = (8, 64)  # fine-tuning's batch sizes: the published one, and one that fills a GPU


def prepare_contexts(
    arguments: argparse.Namespace, work: Path
) -> tuple[list[Context], DeviceFigures, Figures]:
    """A context for each batch size of the own path, checked as a pipeline's; the device; what all is of.

    Prints what is measured on.
    """
    if arguments.repetitions < 1 or arguments.batches < 3:
        raise InputError("--repetitions: must be 1 or more, --batches 3 or more")
    sizes, overrides = _batch_sizes(arguments), _overrides(arguments, work)
    stage, size = arguments.what, models.size_named(arguments.size)
    config = load_config(arguments.recipe, overrides)
    per_size = [load_config(arguments.recipe, overrides | _batch(stage, rows)) for rows in sizes]
    check_device(config.workers)
    connect()
    machine = find_machine(config.workers)
    if arguments.random_init:
        assert config.data.train, "of the overrides"
        needed = max(
            config.encode.batch_size.on(machine.device),
            config.finetune.scaled_to(machine.devices).latents,
            *TUNED_AT_ONCE,
        )
        models.random_pipeline(size, Path(config.model.path))
        models.random_images(size, Path(config.data.train), max(config.ipc, -(-needed // models.CLASSES)))
    context = prepare(config, machine)
    device, info = device_figures(machine), context.info
    model = f"random {size.name}" if arguments.random_init else config.model.path
    print(f"model  {model}, {info.transformer_parameters / 1e6:.4g} M parameters", flush=True)
    document = origin(arguments, machine, device) | {
        "model": model,
        "parameters": info.transformer_parameters,
        "image_size": info.image_size,
        "recipe": config.results(),
    }
    return [replace(context, config=of_size) for of_size in per_size] or [context], device, document


def _batch_sizes(arguments: argparse.Namespace) -> list[int]:
    """The batch sizes of the own path; none means the recipe's."""
    words = arguments.batch_size
    if words is None:
        return list(TUNED_AT_ONCE) if arguments.what == "finetune" else []
    if arguments.what == "pipeline":
        raise InputError(
            "--batch-size: pipeline measures the recipe's; give sample.batch_size={cpu: N, cuda: N} instead"
        )
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", words):
        raise InputError(f"--batch-size: {words!r} is no list of numbers from 1 on, such as 8,64")
    return [int(word) for word in words.split(",")]


def _batch(stage: str, rows: int) -> dict[str, object]:
    return {f"{stage}.batch_size": rows if stage == "finetune" else {"cpu": rows, "cuda": rows}}


def _overrides(arguments: argparse.Namespace, work: Path) -> dict[str, object]:
    """A person's overrides, between those that they may change and those that the bench sets."""
    given = parse_overrides(arguments.overrides)
    weak: dict[str, object] = {}
    fixed: dict[str, object] = {"storage": str(work / "storage"), "evaluate.protocol": "none"}
    if arguments.random_init:
        size = models.size_named(arguments.size)
        folder = work / f"model-{size.name.replace('/', '-')}"
        fixed |= {"model.path": str(folder), "model.vae": None, "data.class_map": None}
        fixed |= {"data.train": str(work / f"images-{size.image_size}")}
        weak |= {"embed.extractor": size.extractor}
        if arguments.recipe == "digits-paper":  # whose guidance is made for its own small model
            weak |= {"sample.guidance_scale": 4.0, "sample.guidance_channels": 3}
    elif arguments.size:
        raise InputError(
            f"--size: {arguments.size} is a random model's; give --random-init too, or leave it out"
        )
    if arguments.what == "refine":  # probes see images as the recipe's classifiers do
        recipe = load_config(arguments.recipe, given)
        weak["probe.protocol"] = recipe.probe.protocol or recipe.evaluate.protocol
    if clash := sorted(set(given) & set(fixed)):
        why = " for --random-init" if arguments.random_init else ""
        raise InputError(f"{clash[0]}: the bench sets it{why}; leave it out")
    return weak | given | fixed
