"""Tables in Markdown, parsing of lists of numbers, and the provenance that every result carries."""

import argparse
import re
from dataclasses import asdict
from datetime import UTC, datetime

import ray

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.cluster.resources import Machine
from ims3_ray.errors import InputError

from .device import DeviceFigures, measure_device

Results = dict[str, object]  # JSON


def parse_counts(text: str, option: str, example: str) -> list[int]:
    """The positive integers of a comma-separated list; raises InputError naming `option` otherwise."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise InputError(f"{option}: {text!r} is not a list of positive integers; write {example}")
    return [int(word) for word in text.split(",")]


def print_head(columns: str) -> None:
    """Print the head of a table; `columns` separates their names by bars."""
    names = columns.split(" | ")
    print()
    print_row(*names)
    print("|---" * len(names) + "|")


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def as_percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def measure_worker_device(machine: Machine) -> DeviceFigures:
    """Measure the device of one worker of `machine`, in that worker, and print the result."""
    measure = ray.remote(**machine.actor_resources)(measure_device)
    device: DeviceFigures = ray.get(measure.remote(machine.device))
    print(device.line(), flush=True)
    return device


def provenance(arguments: argparse.Namespace, machine: Machine, device: DeviceFigures) -> Results:
    """The benchmark's name, its date, the hardware and the versions."""
    return {
        "benchmark": arguments.benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": asdict(device),
        "hardware": hardware(machine),
        "versions": versions(),
    }
