"""What the benches print and write: tables in Markdown, and what the figures were measured on."""

import argparse
import re
from dataclasses import asdict
from datetime import UTC, datetime

import ray

from ims3_ray.cluster.device_benchmark import DeviceFigures, measure_device
from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.cluster.resources import Machine
from ims3_ray.errors import InputError

Figures = dict[str, object]


def whole_numbers(words: str, option: str, what: str, example: str) -> list[int]:
    """The numbers in `words`, each once and ascending; InputError, naming the option, for anything else."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", words):
        raise InputError(f"{option}: {words!r} is no list of numbers of {what}; write {example}")
    return sorted({int(word) for word in words.split(",")})


def print_head(columns: str) -> None:
    """The head of a table, whose columns `columns` names with bars between them."""
    names = columns.split(" | ")
    print()
    print_row(*names)
    print("|---" * len(names) + "|")


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def as_percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def device_figures(machine: Machine) -> DeviceFigures:
    """The device of a worker of `machine`, measured by one, which is said."""
    measure = ray.remote(measure_device).options(**machine.actor_resources)
    device: DeviceFigures = ray.get(measure.remote(machine.device))
    print(device.line(), flush=True)
    return device


def origin(arguments: argparse.Namespace, machine: Machine, device: DeviceFigures) -> Figures:
    """What was measured, when, and on what."""
    return {
        "what": arguments.what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": asdict(device),
        "hardware": hardware(machine),
        "versions": versions(),
        "repetitions": arguments.repetitions,
    }
