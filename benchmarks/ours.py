"""This project's variant of each stage: its worker class, built and called as an actor does it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ims3_ray.cluster.fan_out import CALLS_PER_ACTOR, Build, Part
from ims3_ray.config.evaluation import Refine
from ims3_ray.data.loader import payloads
from ims3_ray.evaluation.probes import differentiable, probe_protocols
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.method import difffit
from ims3_ray.method.refine import Match
from ims3_ray.method.seeding import generator
from ims3_ray.models.device import prepare_device
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.generator import load_vae
from ims3_ray.models.training import Trainer, TrainingConfig
from ims3_ray.pipeline.steps import STAGES
from ims3_ray.stages.base import count_forward, count_operations
from ims3_ray.stages.context import Context
from ims3_ray.stages.encode import Encoder, encoder_arguments
from ims3_ray.stages.finetune.stage import InversionMatchingTask, optimisation, task_arguments
from ims3_ray.stages.invert import Inverter, inverter_arguments
from ims3_ray.stages.refine.refinement import Sizes, refinement, views_of
from ims3_ray.stages.refine.stage import step_operations as refined_step_operations
from ims3_ray.stages.sample.stage import Sampler, sampler_arguments
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import part_names
from ims3_ray.storage.schemas import Table

from .compare import Variant
from .random_inputs import write_latents

ENDLESS = 10**9  # training steps: the benchmark stops by time


@dataclass(frozen=True)
class PoolWork:
    """The arguments of `fan_out` for some batches of a stage."""

    build: Build
    arguments: dict[str, object]
    parts: list[Part]
    table: Table


def pool_work(context: Context, stage: str, work: Directory, num_parts: int) -> PoolWork:
    """`num_parts` full batches of sample, encode or invert; latents to invert are written below `work`."""
    mirror = context.config.data.mirror
    if stage == "sample":
        size, classes = context.batch_size(context.config.sample), len(context.classes)
        rows = [[i % classes, 0, i // classes] for i in range(num_parts * size)]
        parts = [Part(n, size, rows[n * size : (n + 1) * size]) for n in range(num_parts)]
        return PoolWork(Sampler, sampler_arguments(context, None), parts, schemas.CANDIDATES)
    size, train = context.batch_size(context.config.encode), context.images["train"]
    if stage == "encode":
        batches = payloads(train, (np.arange(num_parts * size) % len(train)).tolist(), size)
        parts = [Part(n, size, payload) for n, payload in enumerate(batches)]
        table = schemas.MIRRORED_LATENTS if mirror else schemas.LATENTS
        return PoolWork(Encoder, encoder_arguments(context), parts, table)
    latents, _ = write_latents(context, work, num_parts, size)  # parts have encode's batch size
    parts = [Part(n, size, name) for n, name in enumerate(part_names(latents))]
    table = schemas.MIRRORED_INVERSIONS if mirror else schemas.INVERSIONS
    return PoolWork(Inverter, inverter_arguments(context, latents), parts, table)


def training_work(context: Context, work: Directory, steps: int) -> tuple[dict[str, object], TrainingConfig]:
    """Arguments of the fine-tuning task and its optimisation, on latents written below `work`."""
    latents, inversions = write_latents(context, work, 1, max(256, context.config.finetune.latents))
    return task_arguments(context, latents, inversions), optimisation(context.config.finetune, steps)


def our_variant(context: Context, stage: str, work: Directory) -> Variant:
    """The variant "ours" of `stage`: one batch of the recipe per call."""
    config, numerics = context.config, context.numerics
    settings = f"{numerics.precision}{', compiled blocks' * numerics.compiled}{', graphs' * numerics.graphs}"
    if stage == "refine":
        return _refinement(context, settings)
    if stage == "finetune":
        size = config.finetune.latents
        arguments, numbers = training_work(context, work, ENDLESS)
        settings += f", latents read, {config.finetune.micro_batches} parts, EMA of DiffFit's parameters"
        return Variant(
            name="ours",
            settings=settings,
            build=TrainingStep,
            arguments={"arguments": arguments, "numbers": numbers, "device": context.machine.device},
            batch_size=size,
            images=size,
            operations=step_operations(context.info.config),
            batch_field="finetune.batch_size",
        )
    pool = pool_work(context, stage, work, 1)
    images, sample = pool.parts[0].rows, config.sample
    details = {
        "sample": f"{sample.steps} {sample.sampler} steps, guidance {sample.guidance_scale:g}, PNG, features",
        "encode": "files decoded on threads",
        "invert": f"{config.invert.steps} points, parts of {images} images",
    }
    return Variant(
        name="ours",
        settings=f"{settings}, {details[stage]}",
        build=WorkerCall,
        arguments={"build": pool.build, "arguments": pool.arguments, "payload": pool.parts[0].payload},
        batch_size=context.batch_size(getattr(config, stage)),
        images=images,
        operations=pool_operations(context, stage),
        batch_field=f"{stage}.batch_size.{context.machine.device}",
        calls_at_once=CALLS_PER_ACTOR,
        steps=sample.steps if stage == "sample" else 1,
    )


def _refinement(context: Context, settings: str) -> Variant:
    """One refinement step of one class of `ipc` images; a rate counts images × steps."""
    config = context.config
    protocol = probe_protocols(config.probe, config.evaluate.protocol)[0]
    one_step = replace(context, config=config.model_copy(update={"refine": with_one_step(config.refine)}))
    batch_size = context.batch_size(config.refine)
    settings += (
        f", {views_of(config.refine, protocol)} views, {protocol.network} at {protocol.image_size} pixels, "
        f"{batch_size} images decoded at once"
    )
    return Variant(
        name="ours",
        settings=settings,
        build=RefinementStep,
        arguments={"context": one_step, "protocol": protocol},
        batch_size=batch_size,
        images=config.ipc,
        operations=refined_step_operations(one_step, count_forward(one_step)),
        batch_field=f"refine.batch_size.{context.machine.device}",
    )


def with_one_step(settings: Refine) -> Refine:
    return settings.model_copy(update={"steps": 1})


class RefinementStep:
    """One refinement step of one class, from random latents, with a probe of random weights."""

    def __init__(self, context: Context, protocol: Protocol):
        config, model, device = context.config, context.config.model, prepare_device(context.machine.device)
        numerics = {"device": device, "dtype": context.numerics.dtype}
        vae = load_vae(model.path, vae=model.vae, heads=model.heads, **numerics)
        vae.model.requires_grad_(False)
        rng, size = generator("bench", "refine"), protocol.image_size
        network = protocol.build(len(context.classes), rng)
        self._probe, views = network.to(device), differentiable(protocol)
        packing = Sizes.of(context.tiles, context.stored_size, size)
        self._refinement = refinement(config.refine, vae, views, packing, context.batch_size(config.refine))
        self._start = torch.randn(config.ipc, *context.info.config.latent_shape, generator=rng).to(device)
        real = torch.rand(config.ipc, 3, size, size, generator=rng).to(device)
        measure = self._refinement.objective.measure
        self._target = [x.detach() for x in measure(self._probe, real, 0, differentiable=False)]
        self._view_rng = generator("bench", "views")

    def __call__(self) -> object:
        match = Match(self._probe, self._target, self._view_rng)
        return self._refinement.run(self._start, 0, lambda _: match)


class WorkerCall:
    """A worker of a pool, called repeatedly with one payload."""

    def __init__(
        self, build: Callable[..., Callable[..., object]], arguments: dict[str, object], payload: object
    ):
        self._worker, self._payload = build(**arguments), payload

    def __call__(self) -> object:
        return self._worker(self._payload)


class TrainingStep:
    """The training loop of one Ray Train worker; a call runs one step."""

    def __init__(self, arguments: dict[str, object], numbers: TrainingConfig, device: str):
        self.trainer = local_trainer(arguments, numbers, device)

    def __call__(self) -> object:
        return self.trainer.train_step()

    def checkpoint(self) -> object:
        """The state that a run resumes from."""
        return self.trainer.state_dict()


def local_trainer(arguments: dict[str, object], numbers: TrainingConfig, device: str) -> Trainer:
    """The fine-tuning loop in this process, as a single Ray Train worker runs it."""
    torch_device: torch.device = prepare_device(device)
    task = InversionMatchingTask(device=torch_device, **arguments)  # pyright: ignore[reportArgumentType] task_arguments'
    return Trainer(task, numbers, 0, 1, torch_device)


def pool_operations(context: Context, stage: str) -> float:
    """Operations per image of sample, encode or invert, as the stage's cost model counts them."""
    (own,) = (each for each in STAGES if each.name == stage)
    return own.cost(context, count_forward(context)).operations


def step_operations(config: DiTConfig) -> float:
    """Operations per image of a forward and backward pass, to DiffFit's parameters only."""
    with torch.device("meta"):
        dit, z = DiT(config), torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
        label = torch.zeros(1, dtype=torch.int64)
    difffit.prepare(dit)

    def step() -> None:
        with torch.enable_grad():
            dit(z, label, label).sum().backward()

    return count_operations(step)
