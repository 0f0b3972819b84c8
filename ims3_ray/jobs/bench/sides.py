"""Two or more ways of doing the same work, measured beside each other: each in a process of its own, taking
turns.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
import torch

from ims3_ray.cluster.device_rate import DeviceFigures, measure_device, peak_memory, synchronize
from ims3_ray.cluster.machine import Machine
from ims3_ray.config.base import DeviceKind
from ims3_ray.models.device import batch_must_fit


@dataclass(frozen=True)
class Side:
    """`build(**arguments)` gives what does the work when it is called; a training also has `checkpoint()`."""

    name: str  # "own", or what it stands beside: "published", "plain"
    settings: str  # what a person should know of it
    build: Callable[..., Callable[[], Any]]
    arguments: dict[str, Any]
    batch_size: int
    images: int  # that a call makes
    operations: float  # an image
    batch_field: str  # what to lower where a batch does not fit
    calls_at_once: int = 1  # on threads


@dataclass(frozen=True)
class Measured:
    """A side's figures: medians over the repetitions, whose own figures are `rates`."""

    name: str
    settings: str
    batch_size: int
    images_per_s: float
    ratio: float | None  # over the reference's, where it is measured
    rates: list[float]
    operations_per_image: float
    matrix_share: float  # of the device's measured matrix rate
    peak_memory_bytes: int  # allocated on a GPU, resident on a CPU
    load_s: float
    warm_up_s: float  # the first calls, with whatever is compiled then, less ordinary ones
    checkpoint_bytes: int | None


@ray.remote(num_cpus=0, max_restarts=0)
class Runner:
    """The process of one side. It reserves no core: only one side works at a time."""

    def __init__(self, side: Side, device: DeviceKind):
        began = time.perf_counter()
        self._side, self._device = side, device
        self._threads = ThreadPoolExecutor(side.calls_at_once)
        self._call = side.build(**side.arguments)
        synchronize(device)
        self.load_s = time.perf_counter() - began

    def run(self, seconds: float) -> tuple[int, float]:
        """Calls made, at least one a thread, and the time that they took; memory that is not in use is given
        back.
        """
        began = time.perf_counter()

        def caller(_: int) -> int:
            calls = 0
            while not calls or time.perf_counter() - began < seconds:
                with batch_must_fit(self._side.batch_field, self._side.batch_size):
                    self._call()
                    synchronize(self._device)
                calls += 1
            return calls

        calls = sum(self._threads.map(caller, range(self._side.calls_at_once)))
        took = time.perf_counter() - began
        if self._device == "cuda":
            torch.cuda.empty_cache()  # the sides share the GPU
        return calls, took

    def figures(self) -> dict[str, Any]:
        figures = {
            "load_s": self.load_s,
            "peak_memory_bytes": peak_memory(self._device),
            "checkpoint_bytes": None,
        }
        if hasattr(self._call, "checkpoint"):
            figures["checkpoint_bytes"] = saved_bytes(self._call.checkpoint())
        return figures


def compare(
    sides: list[Side],
    machine: Machine,
    device: DeviceFigures,
    *,
    repetitions: int,
    seconds: float,
    reference: str = "published",
) -> list[Measured]:
    """Every side's figures; in each repetition all take their turn, for at least `seconds` and one call.

    `reference`: the side that ratios are over.
    """
    gpus = 0.99 / len(sides) if machine.device == "cuda" else 0  # of one GPU, which all of them share
    runners = [Runner.options(num_gpus=gpus).remote(side, machine.device) for side in sides]
    first = [ray.get(runner.run.remote(0)) for runner in runners]
    turns = [[ray.get(runner.run.remote(seconds)) for runner in runners] for _ in range(repetitions)]
    rates = [
        [s.images * calls / took for calls, took in column]
        for s, column in zip(sides, zip(*turns, strict=True), strict=True)
    ]
    medians = [statistics.median(of_side) for of_side in rates]
    base = next((rate for side, rate in zip(sides, medians, strict=True) if side.name == reference), None)
    return [
        Measured(
            name=side.name,
            settings=side.settings,
            batch_size=side.batch_size,
            images_per_s=rate,
            ratio=rate / base if base else None,
            rates=of_side,
            operations_per_image=side.operations,
            matrix_share=rate * side.operations / device.matrix_rate,
            warm_up_s=max(0.0, took - side.images * calls / rate),
            **ray.get(runner.figures.remote()),
        )
        for side, runner, rate, of_side, (calls, took) in zip(
            sides, runners, medians, rates, first, strict=True
        )
    ]


def device_figures(machine: Machine) -> DeviceFigures:
    """The device of a worker of `machine`, measured by one."""
    return ray.get(ray.remote(measure_device).options(**machine.actor_resources).remote(machine.device))


class _Counter:
    """A file that keeps the number of bytes alone."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None: ...


def saved_bytes(state: Any) -> int:
    """The size of the file that torch.save writes for `state`."""
    file = _Counter()
    torch.save(state, file)
    return file.size
