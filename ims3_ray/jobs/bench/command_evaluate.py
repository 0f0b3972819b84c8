"""`bench evaluate`: training an evaluation classifier, this project's path beside a DataLoader with PIL
transforms.
"""

import argparse
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ims3_ray.cluster.machine import connect, find_machine, refuse_impossible
from ims3_ray.config.load import load_selecting, parse_overrides
from ims3_ray.errors import InputError

COLUMNS = (
    "side",
    "images/s",
    "ratio",
    "s a training",
    "GFLOP an image",
    "matrix share",
    "peak GB",
    "settings",
)


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--protocol", default="quick", metavar="NAME", help="of the evaluation (default quick)"
    )
    parser.add_argument(
        "--ipc", type=int, default=10, metavar="N", help="digits a class to train on (default 10)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="train for N steps, scored once (default: the protocol's)"
    )
    parser.add_argument(
        "--scored", type=int, metavar="N", help="score N images a class (default: all of the split)"
    )
    parser.add_argument(
        "--loader-workers", type=int, default=2, metavar="N", help="of the plain side (default 2)"
    )
    parser.add_argument(
        "--accuracy", type=int, default=0, metavar="N", help="also compare accuracies over N seeds"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the device's line and the table; gives all figures, with what they were measured on."""
    _check(arguments)
    config = load_selecting(parse_overrides(arguments.overrides))
    refuse_impossible(config.workers)
    from ims3_ray.evaluation.protocols import protocol  # heavy, as below

    rules = protocol(arguments.protocol)
    if arguments.steps:
        rules = rules.model_copy(update={"steps": arguments.steps, "evaluations": 1})
    connect()
    machine = find_machine(config.workers)
    from . import classifiers as evaluation
    from .sides import compare, device_figures

    device = device_figures(machine)
    print(device.line(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.work or temporary).absolute()
        task = evaluation.digits_task(
            folder, rules, machine,
            ipc=arguments.ipc, scored=arguments.scored, loader_workers=arguments.loader_workers,
        )  # fmt: skip
        work = f"{task.train_images} images, {evaluation.trained_images(task)} views, {task.scored_images} scored"
        print(f"protocol {rules.label}: {work} x {rules.evaluations}", flush=True)
        measured = compare(
            evaluation.sides(task), machine, device,
            repetitions=arguments.repetitions, seconds=arguments.seconds, reference="plain",
        )  # fmt: skip
        _show(measured, evaluation.trained_images(task))
        document = _document(arguments, rules, task, machine, device) | {
            "sides": [asdict(m) for m in measured]
        }
        if arguments.accuracy:
            document["accuracy"] = found = evaluation.accuracies(task, machine, arguments.accuracy)
            print(_accuracy_line(found))
    return document


def _check(arguments: argparse.Namespace) -> None:
    least = {"ipc": 1, "steps": 1, "scored": 1, "loader_workers": 0, "repetitions": 1}
    for name, low in least.items():
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise InputError(f"--{name.replace('_', '-')}: {value} is too few; give {low} or more")
    if arguments.accuracy == 1 or arguments.accuracy < 0:
        raise InputError(f"--accuracy: {arguments.accuracy} seeds give no interval; give 2 or more")


def _show(measured: list[Any], images: int) -> None:
    print(f"\n{_row(COLUMNS)}\n{'|---' * len(COLUMNS)}|")
    for m in measured:
        print(_row((
            m.name, f"{m.images_per_s:.4g}", f"{m.ratio:.2f}", f"{images / m.images_per_s:.1f}",
            f"{m.operations_per_image / 1e9:.4g}", f"{100 * m.matrix_share:.1f} %", f"{m.peak_memory_bytes / 1e9:.2f}",
            m.settings,
        )))  # fmt: skip


def _accuracy_line(found: dict[str, Any]) -> str:
    sides = [
        f"{name} {100 * found[name]['mean']:.2f} ± {100 * found[name]['interval']:.2f} %"
        for name in ("own", "plain")
    ]
    apart = f"apart by {100 * found['difference']:+.2f} ± {100 * found['difference_interval']:.2f} points"
    return f"accuracy over {found['own']['count']} seeds: {', '.join(sides)}; {apart} (95 %)"


def _document(
    arguments: argparse.Namespace, rules: Any, task: Any, machine: Any, device: Any
) -> dict[str, Any]:
    from ims3_ray.cluster.environment import hardware, versions

    return {
        "what": arguments.what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": asdict(device),
        "hardware": hardware(machine),
        "versions": versions(),
        "protocol": rules.label,
        "rules": rules.model_dump(),
        "train_images": task.train_images,
        "scored_images": task.scored_images,
        "loader_workers": task.loader_workers,
        "repetitions": arguments.repetitions,
    }


def _row(cells: tuple[Any, ...]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
