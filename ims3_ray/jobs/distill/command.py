"""Distil a labelled image set into a few images per class.

    python jobs/distill.py                               the bundled digits
    python jobs/distill.py ipc=5 sample.subgroups=20 select.alpha=0.5
    python jobs/distill.py --recipe my-images.yaml       written by ims3 init
    python jobs/distill.py --recipe imagewoof storage=s3://bucket/runs \\
        data.train=/data/imagenet/train data.test=/data/imagenet/val

Stages that are complete in the storage are not run again. --status, with the
same arguments, shows the progress of a run.
"""

import argparse
import json
from pathlib import Path

import yaml

from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.settings import Config
from ims3_ray.display import align_columns, format_bytes
from ims3_ray.errors import InputError
from ims3_ray.progress import spinner

from .result import Distillation, find_complete, summary_lines
from .status import read_status, status_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default="digits", metavar="NAME|FILE", help="a named recipe, or a YAML file")
    query = parser.add_mutually_exclusive_group().add_argument
    query("--dry-run", action="store_true", help="print the resolved recipe and the cost of each stage")
    add("--rates", metavar="FILE", help="with --dry-run: gpu-check.json of benchmarks/gpu_check.sh")
    query("--status", action="store_true", help="print the progress of this run, running or dead")
    add("--json", action="store_true", help="with --status: print one JSON document")
    add("overrides", nargs="*", metavar="field=value", help="such as ipc=5 or storage=DIR")


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.recipe, parse_overrides(arguments.overrides))
    if arguments.rates and not arguments.dry_run:
        raise InputError("--rates: only together with --dry-run")
    if arguments.json and not arguments.status:
        raise InputError("--json: only together with --status")
    if arguments.dry_run:
        _dry_run(config, arguments.rates)
    elif arguments.status:
        status = read_status(config)
        print(json.dumps(status, indent=1) if arguments.json else "\n".join(status_lines(status)))
    else:
        distillation = find_complete(config) or _distil(config)
        print("", *summary_lines(config, distillation), sep="\n")


def _distil(config: Config) -> Distillation:
    _check(config)
    with spinner("imports"):
        from ims3_ray.cluster import fork_server, resources  # heavy; bad input is reported before

        if resources.starts_local_cluster():
            fork_server.start()  # imports the same modules meanwhile

        from .run import run as distil

    resources.check_device(config.workers)
    return distil(config)


def _check(config: Config) -> None:
    from ims3_ray.pipeline.inputs import check_run  # a finished run needs no check

    check_run(config)


def _yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _dry_run(config: Config, rates_file: str | None) -> None:
    if find_complete(config):
        print(_yaml(config), *status_lines(read_status(config)), "nothing would run", sep="\n")
        return
    _check(config)
    with spinner("imports"):  # heavy
        from ims3_ray.cluster.resources import check_device, connect, find_machine, has_address
        from ims3_ray.pipeline.checks import idle_gpu_notes
        from ims3_ray.pipeline.prepare import prepare
        from ims3_ray.pipeline.steps import plan

        from .estimate import DRIVER_BYTES, PROCESS_BYTES, estimate_steps, read_rates

    rates = read_rates(Path(rates_file)) if rates_file else {}
    check_device(config.workers)
    with spinner("start"):
        if has_address():
            connect()
        context = prepare(config, find_machine(config.workers, wait=False))
        machine, steps = context.machine, plan(context)
        estimates = estimate_steps(context, steps, rates)
    print(_yaml(context.config))
    print("\n".join(context.notes), end="\n" if context.notes else "")
    print(f"machine: {machine.device}, {machine.actors} actors, {machine.shards} shards")
    print("disk: in the storage, and below TMPDIR of each node; memory: of the driver and of a worker,")
    print(f"which include {format_bytes(DRIVER_BYTES)} and {format_bytes(PROCESS_BYTES)} without data")
    rows = [["stage", "state", "GPUs", "rows", "about", "disk", "node", "driver", "worker"]]
    for step, cost in zip(steps, estimates, strict=True):
        state = "complete" if step.manifest else "damaged" if step.damage else "would run"
        usage = step.stage.gpu_usage(context)
        gpus = f"{usage.gpus} of {machine.gpus}" if machine.on_gpus and usage.gpus else "–"
        sizes = map(format_bytes, (cost.disk, cost.node_disk, cost.driver, cost.worker))
        rows.append([step.stage.name, state, gpus, str(cost.rows), f"{cost.seconds:.0f} s", *sizes])
    print("\n".join(align_columns(rows, left=(0, 1), indent=2)))
    missing_s = sum(c.seconds for step, c in zip(steps, estimates, strict=True) if not step.manifest)
    source = f"{', '.join(rates)} by {rates_file}" if rates else "by matrix products, measured here"
    print(f"estimated time of the stages that are missing: {missing_s:.0f} s ({source})")
    for step in steps:
        for line in idle_gpu_notes(context, step.stage):
            print(line)
