"""Measure variants of the same work side by side: one process each, taking turns on the device."""

import contextvars
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import ray
import torch

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.base import DeviceKind
from ims3_ray.jobs.distill.estimate import synchronize
from ims3_ray.models.device import explain_out_of_memory

from .device import DeviceFigures, peak_memory


@dataclass(frozen=True, kw_only=True)
class Variant:
    """`build(**arguments)` returns a callable that does the work; a training also has `checkpoint()`."""

    name: str  # "ours" or "published"
    settings: str  # shown in the table
    build: Callable[..., Callable[[], object]]
    arguments: dict[str, object] = field(default_factory=dict)
    batch_size: int
    images: int  # per call
    operations: float  # per image; a multiplication and an addition count as two
    batch_field: str  # the field to lower if a batch does not fit
    calls_at_once: int = 1  # concurrent calls, on threads
    steps: int = 1  # training or denoising steps per call


@dataclass(frozen=True)
class Measurement:
    """Measured values of one variant; `images_per_s` is the median of `rates`, one per repetition."""

    name: str
    settings: str
    batch_size: int
    images_per_s: float
    ratio: float | None  # to the published variant
    rates: list[float]
    operations_per_image: float
    matrix_share: float  # of the device's measured matrix rate
    peak_memory_bytes: int  # allocated on a GPU, resident on a CPU
    load_s: float
    warm_up_s: float  # first calls, with compilation, minus the time of ordinary calls
    syncs_per_step: float | None  # host–GPU synchronisations
    checkpoint_bytes: int | None


@ray.remote(num_cpus=0, max_restarts=0)
class Runner:
    """The process of one variant. It reserves no core: only one variant works at a time."""

    def __init__(self, variant: Variant, device: DeviceKind):
        start = time.perf_counter()
        self._variant = variant
        self._device: DeviceKind = device
        self._threads = ThreadPoolExecutor(variant.calls_at_once)
        self._call = variant.build(**variant.arguments)
        self._context = contextvars.copy_context()  # has torch's settings of compilation
        synchronize(device)
        self._load_s = time.perf_counter() - start

    def run(self, seconds: float) -> tuple[int, float]:
        """Number of calls (at least one per thread) and elapsed seconds; then frees cached GPU memory."""
        start = time.perf_counter()

        def call(_: int) -> int:
            calls = 0
            while not calls or time.perf_counter() - start < seconds:
                with explain_out_of_memory(self._variant.batch_field, self._variant.batch_size):
                    self._context.copy().run(self._call)
                    synchronize(self._device)
                calls += 1
            return calls

        calls = sum(self._threads.map(call, range(self._variant.calls_at_once)))
        elapsed = time.perf_counter() - start
        if self._device == "cuda":
            torch.cuda.empty_cache()  # all variants share the GPU
        return calls, elapsed

    def footprint(self) -> tuple[int, float, float | None, int | None]:
        """Peak memory, seconds of loading, synchronisations per step, bytes of a checkpoint."""
        checkpoint = getattr(self._call, "checkpoint", None)
        peak, syncs = peak_memory(self._device), None
        if self._device == "cuda":
            syncs = count_syncs(self._call) / self._variant.steps
        return peak, self._load_s, syncs, checkpoint and saved_bytes(checkpoint())


def compare(
    variants: list[Variant], machine: Machine, device: DeviceFigures, *, repetitions: int, seconds: float
) -> list[Measurement]:
    """Measure all variants. Each takes a turn of at least `seconds` and one call per repetition.

    Ratios are to the last variant, unless it is ours.
    """
    gpus = 0.99 / len(variants) if machine.device == "cuda" else 0  # all share one GPU
    runners = [Runner.options(num_gpus=gpus).remote(variant, machine.device) for variant in variants]
    first, *turns = (
        [ray.get(runner.run.remote(minimum)) for runner in runners]  # pyright: ignore[reportFunctionMemberAccess] Ray's handle
        for minimum in [0.0] + [seconds] * repetitions
    )
    rates = [
        [variant.images * calls / elapsed for calls, elapsed in turns_of_variant]
        for variant, turns_of_variant in zip(variants, zip(*turns, strict=True), strict=True)
    ]
    medians = [statistics.median(values) for values in rates]
    base = None if variants[-1].name == "ours" else medians[-1]
    measurements: list[Measurement] = []
    for variant, runner, rate, values, (calls, elapsed) in zip(
        variants, runners, medians, rates, first, strict=True
    ):
        peak, load_s, syncs, checkpoint = ray.get(runner.footprint.remote())  # pyright: ignore[reportFunctionMemberAccess] Ray's handle
        measurements.append(
            Measurement(
                name=variant.name,
                settings=variant.settings,
                batch_size=variant.batch_size,
                images_per_s=rate,
                ratio=rate / base if base else None,
                rates=values,
                operations_per_image=variant.operations,
                matrix_share=rate * variant.operations / device.matrix_rate,
                peak_memory_bytes=peak,
                load_s=load_s,
                warm_up_s=max(0.0, elapsed - variant.images * calls / rate),
                syncs_per_step=syncs,
                checkpoint_bytes=checkpoint,
            )
        )
    return measurements


def count_syncs(call: Callable[[], object]) -> int:
    """Number of host–GPU synchronisations during a call, as torch's sync debug mode reports them."""
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


class _ByteCounter:
    """A file that only counts the bytes written to it."""

    size = 0

    def write(self, data: bytes) -> int:
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None: ...


def saved_bytes(state: object) -> int:
    """The size of the file that torch.save writes for `state`."""
    file = _ByteCounter()
    torch.save(state, file)  # pyright: ignore[reportArgumentType]  # torch needs write and flush only
    return file.size
