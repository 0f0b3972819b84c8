"""Compare a stage of this project with its published settings: sample, finetune, encode, invert, refine.

python -m benchmarks sample --recipe my.yaml model.path=DIR
python -m benchmarks finetune --random-init --size XL/2     no download
python -m benchmarks sample --batch-size 128,256
python -m benchmarks refine --random-init ipc=2             no published side
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from ims3_ray.cluster.resources import check_device, connect, find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import open_directory

from . import random_inputs
from .compare import compare
from .device import DeviceFigures
from .ours import our_variant
from .published import published_variant
from .tables import (
    Results,
    as_percent,
    measure_worker_device,
    parse_counts,
    print_head,
    print_row,
    provenance,
)

COLUMNS = (
    "variant | batch | images/s | ratio | TFLOP per image | matrix share | peak GB | load s | warm-up s | "
    "syncs per step | checkpoint MB | settings"
)
FINETUNE_BATCH_SIZES = (8, 64)  # the published one, and one that fills a GPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="digits-paper", metavar="NAME|FILE", help="a recipe or a YAML file")
    add("--random-init", action="store_true", help="use random weights and images, not the recipe's")
    add("--size", metavar="NAME", help="size of the random model: tiny, S/2, B/2, L/2, XL/2 (default XL/2)")
    add("--batch-size", metavar="N,…", help="our batch sizes (default: the recipe's; finetune: 8,64)")
    add("--no-published", dest="published", action="store_false", help="skip the published settings")
    add("--repetitions", type=int, default=3, metavar="N", help="report medians over N (default 3)")
    add("--seconds", type=float, default=3.0, metavar="S", help="minimum time per repetition (default 3)")


def run(arguments: argparse.Namespace, work: Path) -> Results:
    """Print the table; return all results with their provenance."""
    contexts, device, document = prepare_contexts(arguments, work)
    stage, inputs = arguments.benchmark, open_directory(str(work / "inputs"))
    variants = [our_variant(context, stage, inputs / f"{stage}-{n}") for n, context in enumerate(contexts)]
    if arguments.published and stage != "refine":  # the paper has no such stage
        variants.append(published_variant(contexts[0], stage))
    measurements = compare(
        variants, contexts[0].machine, device, repetitions=arguments.repetitions, seconds=arguments.seconds
    )
    print_head(COLUMNS)
    for m in measurements:
        print_row(
            m.name,
            m.batch_size,
            f"{m.images_per_s:.4g}",
            "–" if m.ratio is None else f"{m.ratio:.2f}",
            f"{m.operations_per_image / 1e12:.4g}",
            as_percent(m.matrix_share),
            f"{m.peak_memory_bytes / 1e9:.2f}",
            f"{m.load_s:.1f}",
            f"{m.warm_up_s:.1f}",
            "–" if m.syncs_per_step is None else f"{m.syncs_per_step:.3g}",
            "–" if m.checkpoint_bytes is None else f"{m.checkpoint_bytes / 1e6:.1f}",
            m.settings,
        )
    return document | {"variants": [asdict(m) for m in measurements]}


def prepare_contexts(
    arguments: argparse.Namespace, work: Path
) -> tuple[list[Context], DeviceFigures, Results]:
    """One context per batch size of our variant; the device; the provenance. Prints device and model.

    Inputs are checked as the pipeline checks them. Random weights and images are written below `work`.
    """
    if arguments.repetitions < 1:
        raise InputError("--repetitions: must be 1 or more")
    sizes, overrides = _batch_sizes(arguments), _overrides(arguments, work)
    stage, size = arguments.benchmark, random_inputs.size_named(arguments.size)
    config = load_config(arguments.recipe, overrides)
    per_size = [load_config(arguments.recipe, overrides | _batch(stage, rows)) for rows in sizes]
    check_device(config.workers)
    connect()
    machine = find_machine(config.workers)
    if arguments.random_init:
        assert config.data.train, "set by _overrides"
        num_images = max(
            config.encode.batch_size.on(machine.device),
            config.finetune.scaled_to(machine.devices).latents,
            *FINETUNE_BATCH_SIZES,
        )
        per_class = max(config.unpacked_ipc, -(-num_images // random_inputs.CLASSES))
        random_inputs.write_pipeline(size, Path(config.model.path))
        random_inputs.write_images(size, Path(config.data.train), per_class)
    context = prepare(config, machine)
    device, info = measure_worker_device(machine), context.info
    model = f"random {size.name}" if arguments.random_init else config.model.path
    print(f"model  {model}, {info.transformer_parameters / 1e6:.4g} M parameters", flush=True)
    document = provenance(arguments, machine, device) | {
        "repetitions": arguments.repetitions,
        "model": model,
        "parameters": info.transformer_parameters,
        "image_size": info.image_size,
        "recipe": config.results(),
    }
    return [replace(context, config=config) for config in per_size] or [context], device, document


def _batch_sizes(arguments: argparse.Namespace) -> list[int]:
    """The batch sizes of our variant; an empty list means the recipe's."""
    if arguments.batch_size is None:
        return list(FINETUNE_BATCH_SIZES) if arguments.benchmark == "finetune" else []
    return parse_counts(arguments.batch_size, "--batch-size", "8,64")


def _batch(stage: str, rows: int) -> dict[str, object]:
    return {f"{stage}.batch_size": rows if stage == "finetune" else {"cpu": rows, "cuda": rows}}


def _overrides(arguments: argparse.Namespace, work: Path) -> dict[str, object]:
    """The user's overrides, on top of changeable defaults; InputError for a field that the benchmark sets."""
    overrides = parse_overrides(arguments.overrides)
    defaults: dict[str, object] = {}
    fixed: dict[str, object] = {"storage": str(work / "storage"), "evaluate.protocol": "none"}
    if arguments.random_init:
        size = random_inputs.size_named(arguments.size)
        folder = work / f"model-{size.name.replace('/', '-')}"
        fixed |= {"model.path": str(folder), "model.vae": None, "data.class_map": None}
        fixed |= {"data.train": str(work / f"images-{size.image_size}")}
        defaults |= {"embed.extractor": size.extractor}
        if arguments.recipe == "digits-paper":  # its guidance suits its own small model only
            defaults |= {"sample.guidance_scale": 4.0, "sample.guidance_channels": 3}
    elif arguments.size:
        raise InputError(f"--size: {arguments.size} needs --random-init; add it, or leave --size out")
    if arguments.benchmark == "refine":  # probes see images as the recipe's classifiers do
        recipe = load_config(arguments.recipe, overrides)
        defaults["probe.protocol"] = recipe.probe.protocol or recipe.evaluate.protocol
    if conflicts := sorted(set(overrides) & set(fixed)):
        reason = " for --random-init" if arguments.random_init else ""
        raise InputError(f"{conflicts[0]}: the benchmark sets this field{reason}; leave it out")
    return defaults | overrides | fixed
