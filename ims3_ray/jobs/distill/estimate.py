"""Estimate time, disk and memory of a run for --dry-run: counted operations over a measured matrix rate.

Estimates were within a factor of two on the machines where they were compared with measurements.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ims3_ray.cluster.resources import Machine, find_machine
from ims3_ray.config.allocation import granted_memory
from ims3_ray.config.base import DeviceKind
from ims3_ray.config.load import load_settings
from ims3_ray.config.pretrain import Pretrain, TrainSteps
from ims3_ray.config.settings import Config
from ims3_ray.display import format_bytes
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import generator
from ims3_ray.models.dit import DiT
from ims3_ray.models.extractor import HALF, save_extractor
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import Step, plan
from ims3_ray.stages.base import Stage, count_forward
from ims3_ray.stages.context import Context

MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns
MEASURED_STAGES = ("finetune", "sample", "refine", "invert")  # by benchmarks/gpu_check.sh
EFFICIENCY = 0.35  # fraction of the matrix rate that small models reach
RATE_S = 0.25  # duration of a measurement
MEASURED_IMAGES = 4  # per forward and backward pass of a network of `ims3 pretrain`
PROCESS_BYTES = 5e8  # a worker with torch
DRIVER_BYTES = 7e8  # the driver with torch, Ray and MLflow
LISTED_BYTES = 500.0  # per image, for its path and content hash


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds, and bytes in the storage, on each node's disk, and in memory."""

    rows: int
    start_s: float  # to start the workers
    work_s: float  # with all workers in parallel
    exchange_s: float  # of gradients
    disk: float
    node_disk: float
    driver: float
    worker: float

    @property
    def seconds(self) -> float:
        return self.start_s + self.work_s + self.exchange_s


def estimate_steps(
    context: Context, steps: list[Step], rates: Mapping[str, float] | None = None
) -> list[Estimate]:
    """Return an estimate per step, at measured `rates` or the rate of this machine's device."""
    rate = rates or _measure_rate(context) * EFFICIENCY
    return estimate_stages(context, [step.stage for step in steps], rate)


def read_rates(path: Path) -> dict[str, float]:
    """Return operations per second by stage from the gpu-check.json of benchmarks/gpu_check.sh.

    Raises InputError if the file has none.
    """
    try:
        checks: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        rates = {
            stage: max(
                variant["images_per_s"] * variant["operations_per_image"]
                for name, variant in checks[stage].items()
                if name.startswith("ours")
            )
            for stage in MEASURED_STAGES
            if checks.get(stage, {}).get("passed")
        }
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"--rates: {path} is no gpu-check.json ({error!r}); name another") from error
    if not rates:
        raise InputError(f"--rates: {path} has no passed check of {', '.join(MEASURED_STAGES)}; run them")
    return rates


def estimate_stages(
    context: Context, stages: Sequence[Stage], rate: float | Mapping[str, float], bandwidth: float = math.inf
) -> list[Estimate]:
    """Return an estimate per stage. Per second, a worker does `rate` operations and sends `bandwidth` bytes.

    If rates are by stage, a stage without one has the lowest.
    """
    rates, others = (rate, min(rate.values())) if isinstance(rate, Mapping) else ({}, rate)
    forward = count_forward(context)
    listed = DRIVER_BYTES + LISTED_BYTES * sum(len(images) for images in context.images.values())
    estimates: list[Estimate] = []
    for stage in stages:
        cost, node_disk = stage.cost(context, forward), stage.node_disk(context)
        workers = stage.gpu_usage(context).workers
        work_s = cost.rows * cost.operations / (rates.get(stage.name, others) * max(1, workers))
        worker = PROCESS_BYTES + cost.memory if workers else 0.0
        driver = listed + cost.driver
        times = cost.start_s, work_s, cost.sent / bandwidth
        estimates.append(Estimate(cost.rows, *times, cost.disk, node_disk, driver, worker))
    return estimates


def check_memory(estimates: Sequence[Estimate], machine: Machine) -> None:
    """Raise InputError if driver and workers of a stage need more memory than this machine has."""
    needed = max(each.driver + each.worker * machine.actors for each in estimates)
    _check_bytes(needed, "lower image_size or refine.real_images, or set workers.actors=1")


def _check_bytes(needed: float, remedy: str) -> None:
    if needed > (granted := granted_memory()):
        raise InputError(
            f"memory: driver and workers need {format_bytes(needed)}, this machine has "
            f"{format_bytes(granted)}; {remedy}"
        )


def run_seconds(config: Config, untrained: Pretrain | None = None, classes: Sequence[str] = ()) -> float:
    """Return estimated seconds of the run, with the generator that `untrained` describes if it is to come.

    Raises InputError if the run would be refused, or needs more memory than this machine has.
    """
    with tempfile.TemporaryDirectory() as folder:
        machine = find_machine(config.workers, wait=False)
        if untrained:
            _save_untrained(untrained, classes, folder)
            places = {"model.path": folder, "embed.extractor": folder}
            config = load_settings(Config, places, config.model_dump())
        context = prepare(config, machine)
        steps = plan(context)
        estimates = estimate_steps(context, steps)
    check_memory(estimates, machine)
    return sum(cost.seconds for step, cost in zip(steps, estimates, strict=True) if not step.manifest)


def _save_untrained(config: Pretrain, classes: Sequence[str], folder: str) -> None:
    from ims3_ray.jobs.pretrain.rows import Views
    from ims3_ray.jobs.pretrain.tasks import Models, build_vae  # imports diffusers, which takes seconds
    from ims3_ray.models.convert import save_pipeline

    models = Models(config, len(classes), Views(False, 0), {})
    dit = DiT(models.dit_config).initialize(generator("estimate"))
    save_pipeline(dit, build_vae(config.vae, config.image_size, 0), Path(folder), id2label=list(classes))
    save_extractor(models.classifier(0), Path(folder) / "extractor", mean=HALF, deviation=HALF)


def largest_pretraining(
    sizes: Sequence[int], limit: float, counts: Sequence[int], machine: Machine
) -> tuple[int, float]:
    """Return the largest of ascending `sizes` whose pretraining takes at most `limit` hours, and the hours.

    The first size counts in any case. `counts` are images per class.
    """
    best = 0, 0.0
    for side in sizes:
        config = load_settings(Pretrain, {"image_size": side})
        try:
            hours = pretrain_seconds(config, sum(counts), len(counts), machine) / 3600
        except InputError:  # of memory
            if not best[0]:
                raise
            break
        if best[0] and hours > limit:
            break
        best = side, hours
    return best


def pretrain_seconds(config: Pretrain, num_images: int, num_classes: int, machine: Machine) -> float:
    """Return estimated seconds of `ims3 pretrain`, from measured forward and backward passes.

    Raises InputError if a worker's part of a batch does not fit the memory.
    """
    from ims3_ray.jobs.pretrain.rows import Views
    from ims3_ray.jobs.pretrain.tasks import Models, build_vae  # imports diffusers, which takes seconds

    device, side = torch.device(machine.device), config.image_size
    models = Models(config, num_classes, Views(False, 0), {})
    vae, phi = build_vae(config.vae, side, 0), models.classifier(0).to(device)
    torch.nn.Module.to(vae, device)
    dit = DiT(models.dit_config).initialize(generator("estimate")).to(device)
    images = torch.rand(MEASURED_IMAGES, 3, side, side, device=device)
    z = torch.rand(MEASURED_IMAGES, *dit.config.latent_shape, device=device)
    label = torch.zeros(MEASURED_IMAGES, dtype=torch.int64, device=device)
    workers, total = machine.train_workers(config.micro_batches), 0.0
    trainings: list[tuple[TrainSteps, Callable[[], Tensor]]] = [
        (config.vae, lambda: vae(images)[0].sum()),
        (config.transformer, lambda: dit(z, label, label).sum()),
        *[(config.extractor, lambda: phi(images).sum())] * 2,  # φ, and the judge
    ]
    for section, loss in trainings:
        part = math.ceil(section.batch_size / config.micro_batches)
        if device.type == "cpu":
            needed = DRIVER_BYTES + workers * (PROCESS_BYTES + _graph_bytes(loss) * part / MEASURED_IMAGES)
            _check_bytes(needed, f"use --image-size {side // 2}, or --model none")
        rate = MEASURED_IMAGES * runs_per_second(machine.device, lambda loss=loss: loss().backward(), RATE_S)
        steps = section.num_steps(config.epochs, num_images)
        total += steps * section.batch_size / (rate * workers)
    return total


def _graph_bytes(loss: Callable[[], Tensor]) -> int:
    sizes: list[int] = []
    with saved_tensors_hooks(lambda values: sizes.append(values.nbytes), lambda values: values):
        loss()
    return sum(sizes)


def _measure_rate(context: Context) -> float:
    """Return operations per second of a worker; of this CPU in fp32 if only the cluster has a GPU."""
    device, dtype = context.machine.device, context.numerics.dtype
    if device == "cuda" and not torch.cuda.is_available():
        device, dtype = "cpu", torch.float32
    return matrix_rate(device, dtype, RATE_S)


def matrix_rate(kind: DeviceKind, dtype: torch.dtype, seconds: float) -> float:
    """Operations per second in products of two normal matrices; a multiply-add counts as two."""
    a = torch.randn(MATRIX[kind], MATRIX[kind], device=kind).to(dtype)
    out = torch.empty_like(a)
    return 2 * len(a) ** 3 * runs_per_second(kind, lambda: torch.mm(a, a, out=out), seconds)


def runs_per_second(kind: DeviceKind, action: Callable[[], object], seconds: float) -> float:
    """Runs of `action` per second, on one thread if on a CPU; the first run is a warm-up."""
    threads = torch.get_num_threads()
    if kind == "cpu":
        torch.set_num_threads(1)
    try:
        action()
        synchronize(kind)
        began, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds or not done:
            action()
            synchronize(kind)
            done += 1
        return done / elapsed
    finally:
        torch.set_num_threads(threads)


def synchronize(kind: DeviceKind) -> None:
    """Wait until the device has finished its queue."""
    if kind == "cuda":
        torch.cuda.synchronize()
