"""Ways of doing the same work, measured beside each other: each in a process of its own, taking turns."""

import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import ray
import torch

from ims3_ray.cluster.device_benchmark import DeviceFigures, peak_memory, synchronize
from ims3_ray.cluster.resources import Machine
from ims3_ray.config.base import DeviceKind
from ims3_ray.models.device import batch_must_fit


@dataclass(frozen=True, kw_only=True)
class Side:
    """`build(**arguments)` gives what does the work when it is called; a training also has `checkpoint()`."""

    name: str  # "own", or what it stands beside: "published", "plain"
    settings: str  # what a person should know of it
    build: Callable[..., Callable[[], object]]
    arguments: dict[str, object] = field(default_factory=dict)
    batch_size: int
    images: int  # that a call makes
    operations: float  # an image
    batch_field: str  # what to lower where a batch does not fit
    calls_at_once: int = 1  # on threads
    steps: int = 1  # of training or denoising, that a call makes


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
    waits_a_step: float | None  # of the host for a GPU
    checkpoint_bytes: int | None


@ray.remote(num_cpus=0, max_restarts=0)
class Runner:
    """The process of one side. It reserves no core: only one side works at a time."""

    def __init__(self, side: Side, device: DeviceKind):
        began = time.perf_counter()
        self._side = side
        self._device: DeviceKind = device
        self._threads = ThreadPoolExecutor(side.calls_at_once)
        self._call = side.build(**side.arguments)
        synchronize(device)
        self._load_s = time.perf_counter() - began

    def run(self, seconds: float) -> tuple[int, float]:
        """Calls made, at least one a thread, and the time that they took; unused memory is given back."""
        began = time.perf_counter()

        def call(_: int) -> int:
            calls = 0
            while not calls or time.perf_counter() - began < seconds:
                with batch_must_fit(self._side.batch_field, self._side.batch_size):
                    self._call()
                    synchronize(self._device)
                calls += 1
            return calls

        calls = sum(self._threads.map(call, range(self._side.calls_at_once)))
        took = time.perf_counter() - began
        if self._device == "cuda":
            torch.cuda.empty_cache()  # the sides share the GPU
        return calls, took

    def figures(self) -> tuple[int, float, float | None, int | None]:
        """Peak memory, seconds of loading, waits a step, bytes of a checkpoint."""
        checkpoint = getattr(self._call, "checkpoint", None)
        peak, waits = peak_memory(self._device), None
        if self._device == "cuda":
            waits = count_waits(self._call) / self._side.steps
        return peak, self._load_s, waits, checkpoint and saved_bytes(checkpoint())


def compare(
    sides: list[Side], machine: Machine, device: DeviceFigures, *, repetitions: int, seconds: float
) -> list[Measured]:
    """Every side's figures; in each repetition all take their turn, for at least `seconds` and one call.

    Ratios are over the last side, where it is not an own one.
    """
    gpus = 0.99 / len(sides) if machine.device == "cuda" else 0  # of one GPU, which all of them share
    runners = [Runner.options(num_gpus=gpus).remote(side, machine.device) for side in sides]
    first, *turns = (
        [ray.get(runner.run.remote(at_least)) for runner in runners]  # pyright: ignore[reportFunctionMemberAccess] a handle, which Ray makes
        for at_least in [0.0] + [seconds] * repetitions
    )
    rates = [
        [side.images * calls / took for calls, took in of_side]
        for side, of_side in zip(sides, zip(*turns, strict=True), strict=True)
    ]
    medians = [statistics.median(of_side) for of_side in rates]
    base = None if sides[-1].name == "own" else medians[-1]
    measured: list[Measured] = []
    for side, runner, rate, of_side, (calls, took) in zip(sides, runners, medians, rates, first, strict=True):
        peak, load_s, waits, checkpoint = ray.get(runner.figures.remote())  # pyright: ignore[reportFunctionMemberAccess] a handle, which Ray makes
        measured.append(
            Measured(
                name=side.name,
                settings=side.settings,
                batch_size=side.batch_size,
                images_per_s=rate,
                ratio=rate / base if base else None,
                rates=of_side,
                operations_per_image=side.operations,
                matrix_share=rate * side.operations / device.matrix_rate,
                peak_memory_bytes=peak,
                load_s=load_s,
                warm_up_s=max(0.0, took - side.images * calls / rate),
                waits_a_step=waits,
                checkpoint_bytes=checkpoint,
            )
        )
    return measured


def count_waits(call: Callable[[], object]) -> int:
    """How often the host waits for a GPU in a call, as far as torch's sync debug mode sees it."""
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return sum("synchronizing CUDA operation" in str(each.message) for each in told)


class _Counter:
    """A file that keeps the number of bytes alone."""

    size = 0

    def write(self, data: bytes) -> int:
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None: ...


def saved_bytes(state: object) -> int:
    """The size of the file that torch.save writes for `state`."""
    file = _Counter()
    torch.save(state, file)  # pyright: ignore[reportArgumentType]  # it needs no more than write and flush
    return file.size
