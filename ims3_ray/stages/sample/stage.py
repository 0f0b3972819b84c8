"""Stage sample: draw G subgroups of IPC images per class with the tuned model. Writes candidates.

A candidate starts from noise or from the inversion of a real image (`initial_latents`). Its generator is
keyed by (seed, class, subgroup, index), so a smaller pool is a part of a larger one. One actor samples,
decodes and embeds.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.config.settings import Config
from ims3_ray.data.transforms import encode_png
from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.method.ddim import (
    ancestral_stepper,
    broadcast_timestep,
    ddim_stepper,
    mix_noise,
    sample,
    switch_predictor,
    with_guidance,
)
from ims3_ray.method.schedule import alphas_bar, inversion_grid, space_timesteps, timesteps_from
from ims3_ray.method.seeding import generator, key_seed, normal
from ims3_ray.models.device import DECODER_LOCK, prepare_device, run_padded_batches, to_device, to_pixels
from ims3_ray.models.extractor import embed_pixels, load_extractor
from ims3_ray.models.finetuned import TunedModel
from ims3_ray.models.generator import dpm_stepper, load_vae
from ims3_ray.stages.base import (
    KEY_BYTES,
    Cost,
    Forward,
    GpuUsage,
    Stage,
    generator_bytes,
    parts_bytes,
    pixel_bytes,
    png_bytes,
    pool_usage,
)
from ims3_ray.stages.context import Context
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.schemas import Columns

from . import real
from .initial_latents import InitialLatents, collect_initial_latents

DECODE_BATCH = 32  # at 256 pixels, 256 images at once would take 26 to 38 GB in bf16
Place = tuple[int, int, int]  # class, subgroup and index of a candidate
Key = tuple[str | int, ...]  # of the generator of a candidate


def start_point(config: Config) -> tuple[int, int]:
    """Return place and timestep of the grid point, of s_1 … s_S, nearest to `sample.start_level`."""
    grid = inversion_grid(config.invert.steps)[1:].numpy()
    place = int(np.abs(grid - config.sample.start_level).argmin())
    return place, int(grid[place])


def sampling_timesteps(config: Config) -> Int[Tensor, " n"]:
    """Return the ascending timesteps at which the model is evaluated, from noise or from the start level."""
    settings = config.sample
    timesteps = space_timesteps(settings.steps, "log_snr" if settings.sampler == "dpm" else settings.spacing)
    return timesteps_from(timesteps, start_point(config)[1]) if settings.start == "inversion" else timesteps


def in_interval(timesteps: Int[Tensor, " n"], interval: tuple[int, ...] | None) -> Bool[Tensor, " n"]:
    """Tell which timesteps lie in the interval, ends included; None holds all."""
    if interval is None:
        return torch.ones_like(timesteps, dtype=torch.bool)
    return (interval[0] <= timesteps) & (timesteps <= interval[1])


def check_interval(config: Config) -> None:
    """Raise InputError if the interval of guidance holds none of the run's timesteps."""
    settings, timesteps = config.sample, sampling_timesteps(config)
    interval = settings.guidance_interval
    if not in_interval(timesteps, interval).any():
        raise InputError(
            f"sample.guidance_interval: {list(interval or ())} holds none of the timesteps of "
            f"{settings.steps} {settings.sampler} steps ({first_few(timesteps.flip(0).tolist())}); widen it"
        )


def run(
    context: Context,
    out: Directory,
    adapter: Directory | None = None,
    inversions: Directory | None = None,
    features: Directory | None = None,
) -> dict[str, Any]:
    """Draw all candidates in batches that mix classes and subgroups; only the recipe decides their content.

    Without a generator, the candidates are real images.
    """
    if context.generator is None:
        assert features, "needed without a generator"
        return real.run(context, out, features)
    config = context.config
    places: list[Place] = [
        (label, subgroup, index)
        for subgroup in range(config.sample.subgroups)
        for label in range(len(context.classes))
        for index in range(config.pool_ipc)
    ]
    size = context.batch_size(config.sample)
    batches = [places[start : start + size] for start in range(0, len(places), size)]
    arguments = sampler_arguments(context, adapter)
    if inversions and features:
        level, _ = start_point(config)
        collect_initial_latents(context, inversions, features, level=level).save(out)
        arguments["saved"] = out
    parts = [Part(index, len(batch), batch) for index, batch in enumerate(batches)]
    return fan_out(
        Sampler, arguments, parts, table=schemas.CANDIDATES, out=out, machine=context.machine, stage="sample"
    )


def sampler_arguments(context: Context, adapter: Directory | None) -> dict[str, Any]:
    """Return the constructor arguments of `Sampler`."""
    return {
        "config": context.config,
        "model": context.tuned_model(adapter),
        "classes": context.classes,
        "model_labels": context.model_labels,
        "batch_size": context.batch_size(context.config.sample),
    }


class Sampler:
    """Actor: takes (class, subgroup, index) of a batch, returns its images and features."""

    def __init__(
        self,
        config: Config,
        model: TunedModel,
        classes: tuple[str, ...],
        model_labels: list[int],
        batch_size: int,
        saved: Directory | None = None,  # initial latents
    ):
        device = self._device = prepare_device(model.numerics.device)
        loaded, settings = model.load(device), config.sample
        numerics = {"device": device, "dtype": model.numerics.dtype}
        self._vae = load_vae(model.path, vae=config.model.vae, heads=model.heads, **numerics)
        self._extractor = load_extractor(config.embed.extractor, device)
        self._seed, self._settings, self._batch_size = config.seed, settings, batch_size
        self._classes, self._model_labels = classes, np.array(model_labels)
        self._shape = loaded.dit.config.latent_shape
        guidance = {"scale": settings.guidance_scale, "channels": settings.guidance_channels}
        plain = broadcast_timestep(loaded.predict)
        self._predict = broadcast_timestep(with_guidance(loaded.predict, loaded.dit.null_label, **guidance))
        if settings.guidance_interval:
            self._predict = switch_predictor(settings.guidance_interval, inside=self._predict, outside=plain)
        self._timesteps, self._abar = sampling_timesteps(config), alphas_bar().to(device)
        self._starts = InitialLatents.load(saved) if saved else None

    def __call__(self, payload: list[Place]) -> tuple[Columns, dict[str, str]]:
        places = label, subgroup, index = np.array(payload, dtype=np.int64).T
        keys = [("sample", self._seed, self._classes[c], int(g), int(k)) for c, g, k in payload]
        pixels = self._decode(self._denoise(places, keys))
        columns = {
            "label": label,
            "subgroup": subgroup,
            "index": index,
            "seed": np.array([key_seed(*key) for key in keys]),
            "image": np.array([encode_png(image) for image in pixels], dtype=object),
            "feature": embed_pixels(self._extractor, pixels, self._batch_size, self._device),
        }
        return columns, {}

    @torch.inference_mode()
    def _denoise(self, places: np.ndarray, keys: list[Key]) -> np.ndarray:
        """Return latents (N, C, h, w). A short batch is padded, which gives the bits of a full batch."""
        generators = [generator(*key) for key in keys]
        padding = self._batch_size - len(generators)

        def draw_noise() -> Tensor:
            noise = normal(generators, self._shape)
            return to_device(torch.cat([noise, noise.new_zeros(padding, *self._shape)]), self._device)

        def draw(labels: Tensor, *inversions: Tensor) -> list[Tensor]:
            z = draw_noise()
            if self._starts:
                z = mix_noise(inversions[0].float(), z, share=self._starts.noise)
            if self._settings.sampler == "ddim":
                step = ddim_stepper
            elif self._settings.sampler == "dpm":
                step = dpm_stepper(self._timesteps)
            else:
                step = ancestral_stepper(self._timesteps, draw_noise)
            return [sample(step, self._predict, z, labels, self._timesteps, self._abar)]

        rows = [self._model_labels[places[0]]]
        if self._starts:
            rows.append(self._starts.latents[self._starts.rows(*places)])
        return run_padded_batches(draw, rows, self._batch_size, self._device)[0]

    @torch.inference_mode()
    def _decode(self, latents: np.ndarray) -> np.ndarray:
        """Return pixels (N, 3, H, W) uint8. Another call of the actor may denoise meanwhile."""
        return run_padded_batches(
            lambda z: [to_pixels(self._vae.decode(z))],
            [latents],
            min(self._batch_size, DECODE_BATCH),
            self._device,
            DECODER_LOCK,
        )[0]


def _fingerprint_inputs(context: Context) -> object:
    config = context.config
    if context.generator is None:
        return real.fingerprint_inputs(context)
    settings = context.values_of(config.sample) | {"pool_ipc": config.pool_ipc}
    unused = {"spacing"} if config.sample.sampler == "dpm" else set()
    if config.sample.start == "noise":
        unused |= {name for name in settings if name.startswith("start")}
    settings = {name: value for name, value in settings.items() if name not in unused}
    return [settings, config.seed, context.inputs["extractor"], context.generator_values()]


def _needs_input(context: Context, noun: str) -> bool:
    settings = context.config.sample
    if context.generator is None:
        return noun == "features"
    return noun == "adapter" or settings.start == "inversion"


def _cost(context: Context, forward: Forward) -> Cost:
    rows, settings = context.num_candidates, context.config.sample
    if context.generator is None:
        return real.cost(context, forward)
    timesteps = sampling_timesteps(context.config)
    is_guided = settings.guidance_scale != 1
    doubled = int(in_interval(timesteps, settings.guidance_interval).sum()) if is_guided else 0
    operations = (len(timesteps) + doubled) * forward.dit + forward.decode + forward.embed
    disk = rows * (png_bytes(context) + 4 * forward.feature_dim)
    pixels = pixel_bytes(1, context.info.image_size)
    parts = parts_bytes(context.batch_size(settings), pixels + disk / rows)
    return Cost(rows, operations, disk, generator_bytes(context) + parts, rows * KEY_BYTES)


def _gpu_usage(context: Context) -> GpuUsage:
    size = context.batch_size(context.config.sample) if context.generator else real.part_rows(context)
    return pool_usage(context, context.num_candidates, size)


STAGE = Stage(
    name="sample",
    output="candidates",
    version=2,
    inputs=("adapter", "inversions", "features"),
    needs_input=_needs_input,
    is_enabled=lambda context: context.config.makes_candidates,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=_gpu_usage,
)
