"""The generator: a DiT and its VAE, inspected from headers; its noise schedule and DPM-Solver++.

Latents in this package are scaled: the VAE's own times its `scaling_factor`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ims3_ray.errors import InputError
from ims3_ray.method.ddim import Latents, Step, noise_of
from ims3_ray.method.schedule import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS

from .checkpoints import inspect_transformer
from .diffusers_layout import DIFFUSERS_SHIFT
from .dit import DiT, DiTConfig
from .files import find_weights, read_json, read_shapes, resolve_model
from .vae import Vae, image_size, read_vae, vae_config, vae_folder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SCHEDULE: dict[str, Any] = {  # of the training of DiT's checkpoints
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "trained_betas": None,
    "prediction_type": "epsilon",
}


def dpm_stepper(timesteps: Int[Tensor, " n"]) -> Step:
    """Return the DPM-Solver++ step (Lu et al. 2022, second order, diffusers' own) of `method.ddim.sample`.

    For one batch: the solver keeps the previous prediction. The first and last steps are of first order, as
    in DDIM. Use timesteps even in log_snr; on timesteps even in t it is worse than DDIM.
    """
    from diffusers import DPMSolverMultistepScheduler  # seconds to import

    solver = DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
    solver.set_timesteps(timesteps=timesteps.flip(0).tolist())

    def step(z: Latents, output: Tensor, t: int, *_: Tensor) -> Latents:
        return solver.step(noise_of(output, z.shape[1]), t, z, return_dict=False)[0]

    return step


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """Facts about a generator, found without reading its weights."""

    path: str  # local
    vae_path: str
    kind: Literal["diffusers", "original"]
    config: DiTConfig
    image_size: int
    transformer_parameters: int  # without the fixed position table
    vae_parameters: int
    id2label: list[str] | None


def inspect_generator(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    heads: int | None = None,
    frequency_shift: float | None = None,
) -> GeneratorInfo:
    """Describe the generator at `path` from JSON and the headers of weight files.

    `path` is a diffusers pipeline folder, hub id, `package://name`, or original `.pt` file with `vae`.
    `heads` and `frequency_shift` as in `load_transformer`. Raises InputError for a missing folder or one of
    another kind, names or shapes that do not fit the configuration, a VAE with other latents or image size,
    another noise schedule, or class names that do not fit the number of classes.
    """
    local = resolve_model(path)
    checkpoint = inspect_transformer(local, heads, frequency_shift)
    folder = vae_folder(local, vae)
    vae_settings = vae_config(folder, checkpoint.config)
    vae_weights = read_shapes(find_weights(folder))
    _check_schedule(local / "scheduler" / "scheduler_config.json")
    with torch.device("meta"):
        transformer = DiT(checkpoint.config)
    return GeneratorInfo(
        path=str(local),
        vae_path=str(folder),
        kind=checkpoint.kind,
        config=checkpoint.config,
        image_size=image_size(local, folder, vae_settings, checkpoint.config),
        transformer_parameters=sum(parameter.numel() for parameter in transformer.parameters()),
        vae_parameters=sum(map(math.prod, vae_weights.values())),
        id2label=_class_names(local / "model_index.json", checkpoint.config.num_classes),
    )


def load_vae(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    heads: int | None = None,
    device: torch.device,
    dtype: torch.dtype,
) -> Vae:
    """Load only the VAE of the generator at `path`; arguments as in `inspect_generator`."""
    # the VAE does not depend on the frequency shift: any value avoids an error
    info = inspect_generator(path, vae=vae, heads=heads, frequency_shift=DIFFUSERS_SHIFT)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # for tensor cores
    model = nn.Module.to(read_vae(info.vae_path), device=device, dtype=dtype)  # diffusers' own `to` warns
    nn.Module.to(model, memory_format=layout)  # pyright: ignore[reportCallIssue]
    return Vae(cast("AutoencoderKL", model), info.image_size)


def _check_schedule(path: Path) -> None:
    """Raise InputError if a pipeline's scheduler has another noise schedule than DiT's training."""
    if not path.is_file():
        return
    settings = read_json(path)
    for name, value in SCHEDULE.items():
        if settings.get(name, value) != value:
            raise InputError(f"{path}: {name} must be {value!r}, DiT's schedule, not {settings[name]!r}")


def _class_names(path: Path, num_classes: int) -> list[str] | None:
    """Return class names in the order of the labels from a model_index.json; None if it has none."""
    names = read_json(path).get("id2label") if path.is_file() else None
    if names is None:
        return None
    if set(names) != {str(label) for label in range(num_classes)}:
        raise InputError(
            f"{path}: id2label must name each label from 0 to {num_classes - 1}; it has {len(names)} names"
        )
    return [names[str(label)] for label in range(num_classes)]
