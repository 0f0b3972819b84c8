"""`bench sample | finetune | encode | invert | pipeline`: this project's own path beside what it is measured
against.

The stages stand beside the published settings, `pipeline` beside the bare loop of the same parts.
"""

import argparse
import re
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ims3_ray.cluster.machine import connect, find_machine, refuse_impossible
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import open_directory

STAGES = ("sample", "finetune", "encode", "invert")
WHAT = (*STAGES, "pipeline")
TUNED_AT_ONCE = (8, 64)  # fine-tuning's batch sizes: the published one, and one that fills a GPU
SIZE = "XL/2"
SIDE_COLUMNS = (
    "side",
    "batch",
    "images/s",
    "ratio",
    "TFLOP an image",
    "matrix share",
    "peak GB",
    "load s",
    "warm-up s",
    "checkpoint MB",
    "settings",
)
RAY_COLUMNS = ("stage", "batches × size", "bare images/s", "Ray images/s", "ratio", "start-up s", "whole s")


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--recipe", default="digits", metavar="NAME|FILE", help="a named run, or a YAML file like those"
    )
    parser.add_argument(
        "--random-init", action="store_true", help="random weights and images instead of the recipe's"
    )
    parser.add_argument(
        "--size", metavar="NAME", help=f"of the random model: tiny, S/2, B/2, L/2, XL/2 (default {SIZE})"
    )
    parser.add_argument(
        "--batch-size", metavar="N,…", help="of the own path (default: the recipe's; finetune: 8,64)"
    )
    parser.add_argument(
        "--no-published", dest="published", action="store_false", help="leave the published settings out"
    )
    parser.add_argument(
        "--repetitions", type=int, default=3, metavar="N", help="of which medians are shown (default 3)"
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="a repetition takes at least (default 3)"
    )
    parser.add_argument(
        "--stages", default=",".join(STAGES), metavar="NAME,…", help="pipeline: which (default all)"
    )
    parser.add_argument(
        "--batches", type=int, default=6, metavar="N", help="pipeline: of every pool (default 6)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the device's line and the table; gives all figures, with what they were measured on."""
    stages, sizes = _stages(arguments), _batch_sizes(arguments)
    if arguments.repetitions < 1 or arguments.batches < 3:
        raise InputError("--repetitions: must be 1 or more, --batches 3 or more")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary).absolute()
        overrides = _overrides(arguments, work)
        config = load_config(arguments.recipe, overrides)
        per_size = {
            size: load_config(arguments.recipe, overrides | _batch(arguments.what, size)) for size in sizes
        }
        refuse_impossible(config.workers)
        connect()
        context = _context(arguments, config, work)
        from .sides import device_figures  # heavy, as below

        device = device_figures(context.machine)
        print(device.line(), flush=True)
        print(
            f"model  {_named(arguments, config)}, {context.info.transformer_parameters / 1e6:.4g} M parameters",
            flush=True,
        )
        document = _document(arguments, context, device)
        if arguments.what == "pipeline":
            return document | {"stages": _pipeline(context, stages, work, arguments)}
        contexts = [replace(context, config=of_size) for of_size in per_size.values()] or [context]
        return document | {"sides": _sides(contexts, work, device, arguments)}


def _stages(arguments: argparse.Namespace) -> list[str]:
    stages = arguments.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise InputError(f"--stages: {unknown[0]!r} is none of {', '.join(STAGES)}")
    return stages


def _batch_sizes(arguments: argparse.Namespace) -> list[int]:
    """The batch sizes of the own path; none means the recipe's."""
    if arguments.batch_size is None:
        return list(TUNED_AT_ONCE) if arguments.what == "finetune" else []
    if arguments.what == "pipeline":
        raise InputError(
            "--batch-size: pipeline measures the recipe's; give sample.batch_size={cpu: N, cuda: N} instead"
        )
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", arguments.batch_size):
        raise InputError(
            f"--batch-size: {arguments.batch_size!r} is no list of numbers from 1 on, such as 8,64"
        )
    return [int(word) for word in arguments.batch_size.split(",")]


def _batch(stage: str, size: int) -> dict[str, Any]:
    return {f"{stage}.batch_size": size if stage == "finetune" else {"cpu": size, "cuda": size}}


def _overrides(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """A person's overrides, and those that a bench or random weights ask for."""
    given = parse_overrides(arguments.overrides)
    made: dict[str, Any] = {"storage": str(work / "storage"), "evaluate.protocol": "none"}
    weak: dict[str, Any] = {}
    if arguments.random_init:
        from .models import size_named

        size = size_named(arguments.size or SIZE)
        made |= {"model.path": str(_model_folder(arguments, work)), "model.vae": None, "data.class_map": None}
        made |= {"data.train": str(work / f"images-{size.image_size}")}
        weak = {"embed.extractor": size.extractor}
        if arguments.recipe == "digits":  # whose guidance is made for its own small model
            weak |= {"sample.guidance_scale": 4.0, "sample.guidance_channels": 3}
    elif arguments.size:
        raise InputError(
            f"--size: {arguments.size} is a random model's; give --random-init too, or leave it out"
        )
    if clash := sorted(set(given) & set(made)):
        raise InputError(
            f"{clash[0]}: the bench sets it{' for --random-init' if arguments.random_init else ''}; leave it out"
        )
    return weak | given | made


def _model_folder(arguments: argparse.Namespace, work: Path) -> Path:
    return work / f"model-{(arguments.size or SIZE).replace('/', '-')}"


def _named(arguments: argparse.Namespace, config: Config) -> str:
    return f"random {arguments.size or SIZE}" if arguments.random_init else config.model.path


def _context(arguments: argparse.Namespace, config: Config, work: Path) -> Any:
    """The run's context, checked as a pipeline's; random weights and images are made before."""
    from ims3_ray.pipeline import prepare as preparation

    from . import models

    machine = find_machine(config.workers)
    if arguments.random_init:
        size = models.size_named(arguments.size or SIZE)
        needed = max(
            config.encode.batch_size.on(machine.device), config.finetune.batch_size, max(TUNED_AT_ONCE)
        )
        models.random_pipeline(size, _model_folder(arguments, work))
        models.random_images(size, Path(config.data.train), max(config.ipc, -(-needed // models.CLASSES)))
    return preparation.prepare(config, machine)


def _document(arguments: argparse.Namespace, context: Any, device: Any) -> dict[str, Any]:
    from ims3_ray.cluster.environment import hardware, versions

    return {
        "what": arguments.what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": asdict(device),
        "hardware": hardware(context.machine),
        "versions": versions(),
        "model": _named(arguments, context.config),
        "parameters": context.info.transformer_parameters,
        "image_size": context.info.image_size,
        "repetitions": arguments.repetitions,
        "recipe": context.config.results(),
    }


def _sides(
    contexts: list[Any], work: Path, device: Any, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    from .published import published_side
    from .sides import compare
    from .stages import own_side

    stage, folder = arguments.what, open_directory(str(work / "inputs"))
    sides = [
        own_side(context, stage, folder / f"{stage}-own-{place}") for place, context in enumerate(contexts)
    ]
    if arguments.published:
        sides.append(published_side(contexts[0], stage, folder / f"{stage}-published"))
    measured = compare(
        sides, contexts[0].machine, device, repetitions=arguments.repetitions, seconds=arguments.seconds
    )
    print(f"\n{_row(SIDE_COLUMNS)}\n{'|---' * len(SIDE_COLUMNS)}|")
    for m in measured:
        ratio = "–" if m.ratio is None else f"{m.ratio:.2f}"
        checkpoint = "–" if m.checkpoint_bytes is None else f"{m.checkpoint_bytes / 1e6:.1f}"
        print(_row((
            m.name, m.batch_size, f"{m.images_per_s:.4g}", ratio, f"{m.operations_per_image / 1e12:.4g}",
            f"{100 * m.matrix_share:.1f} %", f"{m.peak_memory_bytes / 1e9:.2f}", f"{m.load_s:.1f}", f"{m.warm_up_s:.1f}",
            checkpoint, m.settings,
        )))  # fmt: skip
    return [asdict(m) for m in measured]


def _pipeline(
    context: Any, stages: list[str], work: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    from .overhead import overhead

    print(f"\n{_row(RAY_COLUMNS)}\n{'|---' * len(RAY_COLUMNS)}|")
    folder, found = open_directory(str(work / "pipeline")), []
    for stage in stages:
        o = overhead(context, stage, folder, batches=arguments.batches, repetitions=arguments.repetitions)
        rates = f"{o.bare_images_per_s:.4g}", f"{o.ray_images_per_s:.4g}"
        times = f"{o.ratio:.3f}", f"{o.start_s:.1f}", f"{o.whole_s:.1f}"
        print(_row((o.stage, f"{o.batches} × {o.batch_size}", *rates, *times)), flush=True)
        found.append(asdict(o))
    return found


def _row(cells: tuple[Any, ...]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
