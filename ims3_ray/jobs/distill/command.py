"""Distil a labelled image set into a few images a class.

    python jobs/distill.py                               the bundled digits
    python jobs/distill.py ipc=5 sample.subgroups=20 select.alpha=0.5
    python jobs/distill.py --recipe my-images.yaml       begun by ims3 init
    python jobs/distill.py --recipe imagewoof storage=s3://bucket/runs \\
        data.train=/data/imagenet/train data.test=/data/imagenet/val

What is complete under the storage is found and not made again; --status, with
the same words, says how far a run has come.
"""

import argparse
import json
import math

import yaml

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.settings import Config
from ims3_ray.display import format_bytes
from ims3_ray.errors import InputError
from ims3_ray.progress import spinner

from .cached_run import find_complete
from .result import Distillation, summary_lines
from .status import read_status, status_lines

LINE = "  {:<9}{:<10}{:>8}{:>9}{:>9}" + 4 * "{:>8}"  # of a dry run, within 80 columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", default="digits", metavar="NAME|FILE", help="a named run, or a YAML file like those"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the resolved recipe and what each stage would do"
    )
    parser.add_argument(
        "--price", type=float, metavar="P", help="with --dry-run: what a GPU's hour costs, or a CPU node's"
    )
    parser.add_argument(
        "--status", action="store_true", help="show how far this run has come, running or dead, and stop"
    )
    parser.add_argument("--json", action="store_true", help="with --status: as one JSON document")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="such as ipc=5 or storage=DIR")


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.recipe, parse_overrides(arguments.overrides))
    if arguments.dry_run and arguments.status:
        raise InputError("--dry-run, --status: are two answers; ask for one")
    if arguments.price is not None and not (arguments.dry_run and 0 < arguments.price < math.inf):
        raise InputError("--price: is a number above 0 beside --dry-run, which alone prices a run")
    if arguments.dry_run:
        _dry_run(config, arguments.price)
    elif arguments.status:
        status = read_status(config)
        print(json.dumps(status, indent=1) if arguments.json else "\n".join(status_lines(status)))
    else:
        distillation = find_complete(config) or _distil(config)
        print("", *summary_lines(config, distillation), sep="\n")


def _distil(config: Config) -> Distillation:
    _check(config)
    with spinner("imports"):
        from ims3_ray.cluster import fork_server, resources  # heavy, not needed to refuse bad input

        if resources.starts_local_cluster():
            fork_server.start()  # while this process imports the same

        from .run import run as distil

    resources.check_device(config.workers)
    return distil(config)


def _check(config: Config) -> None:
    from ims3_ray.pipeline.inputs import check_run  # a finished run needs no check

    check_run(config)


def _yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _dry_run(config: Config, price: float | None) -> None:
    if find_complete(config):  # what it took is known, and needs no plan
        print(_yaml(config), *status_lines(read_status(config)), "nothing would run", sep="\n")
        return
    _check(config)
    with spinner("imports"):  # heavy
        from ims3_ray.cluster.resources import check_device, connect, find_machine, has_address
        from ims3_ray.pipeline.checks import idle_gpu_notes
        from ims3_ray.pipeline.prepare import prepare
        from ims3_ray.pipeline.steps import plan

        from .estimate import DRIVER_BYTES, PROCESS_BYTES, estimate_steps

    check_device(config.workers)
    with spinner("start"):
        if has_address():
            connect()
        context = prepare(config, find_machine(config.workers, wait=False))
        machine, steps = context.machine, plan(context)
        costs = estimate_steps(context, steps)
    print(_yaml(context.config))
    print("\n".join(context.notes), end="\n" if context.notes else "")
    print(f"machine: {machine.device}, {machine.actors} actors, {machine.shards} shards")
    print("disk in the storage and below each node's TMPDIR; memory of the driver and of a")
    print(
        f"worker, {format_bytes(DRIVER_BYTES)} and {format_bytes(PROCESS_BYTES)} of which they take "
        "without data:"
    )
    print(LINE.format("stage", "state", "GPUs", "rows", "about", "disk", "node", "driver", "worker"))
    for step, cost in zip(steps, costs, strict=True):
        state = "complete" if step.manifest else "damaged" if step.damage else "would run"
        use = step.stage.gpu_usage(context)
        gpus = f"{use.gpus} of {machine.gpus}" if machine.on_gpus and use.gpus else "–"
        sizes = map(format_bytes, (cost.disk, cost.node_disk, cost.driver, cost.worker))
        print(LINE.format(step.stage.name, state, gpus, cost.rows, f"{cost.seconds:.0f} s", *sizes))
    missing_s = sum(c.seconds for step, c in zip(steps, costs, strict=True) if not step.manifest)
    print(f"estimated time of what is missing: {missing_s:.0f} s")
    if price is not None:
        print(price_line(missing_s, machine.gpus if machine.on_gpus else None, price))
    for step in steps:
        for line in idle_gpu_notes(context, step.stage):
            print(line)


def price_line(seconds: float, gpus: int | None, price: float) -> str:
    """What so long a run costs: every GPU is paid for from its beginning to its end, without one the node."""
    what, cost = "this machine" if gpus is None else f"{gpus} GPUs", seconds / 3600 * (gpus or 1) * price
    return f"estimated cost of it: {cost:.2f}, {what} at {price:g} an hour each"
