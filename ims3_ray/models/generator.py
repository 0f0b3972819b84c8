"""The generator: a DiT and the VAE whose latents it denoises; inspected, saved as a diffusers pipeline.

Latents everywhere in this package are scaled: the VAE's own times its `scaling_factor`.
"""

import copy
import json
import math
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import nn

from ims3_ray.errors import InputError
from ims3_ray.method import difffit
from ims3_ray.method.schedule import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS

from .checkpoints import inspect_transformer
from .diffusers_layout import CLASS_TABLE, DIFFUSERS_SHIFT, export_transformer
from .dit import DiT, DiTConfig
from .files import find_weights, read_json, read_shapes
from .hub import resolve_model
from .vae import Vae, image_size, read_vae, vae_config, vae_folder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Model = TypeVar("Model", bound=nn.Module)
SCHEDULE: dict[str, Any] = {  # the noise schedule that DiT's checkpoints were trained with
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "trained_betas": None,
    "prediction_type": "epsilon",
}


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """What a generator is, found without reading its weights."""

    path: str  # local
    vae_path: str
    kind: Literal["diffusers", "original"]
    config: DiTConfig
    image_size: int
    scaling_factor: float
    transformer_parameters: int  # without the fixed position table
    vae_parameters: int
    id2label: list[str] | None

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        return self.config.latent_shape


def inspect_generator(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    heads: int | None = None,
    frequency_shift: float | None = None,
) -> GeneratorInfo:
    """What the generator at `path` is, from JSON and the headers of the weight files.

    `path` is a diffusers pipeline folder, hub id, `package://name`, or original `.pt` file with `vae`;
    `heads` and `frequency_shift` as in `load_transformer`. Raises InputError for a folder that is missing or
    of another kind, names or shapes that don't fit the configuration, a VAE with other latents or image
    size, another noise schedule, or class names that don't fit the number of classes.
    """
    local = resolve_model(path)
    checkpoint = inspect_transformer(local, heads, frequency_shift)
    folder = vae_folder(local, vae)
    its_config = vae_config(folder, checkpoint.config)
    vae_weights = read_shapes(find_weights(folder))
    _check_schedule(local / "scheduler" / "scheduler_config.json")
    with torch.device("meta"):
        transformer = DiT(checkpoint.config)
    return GeneratorInfo(
        path=str(local),
        vae_path=str(folder),
        kind=checkpoint.kind,
        config=checkpoint.config,
        image_size=image_size(local, folder, its_config, checkpoint.config),
        scaling_factor=its_config["scaling_factor"],
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
    """The VAE of the generator at `path`, without the transformer's weights; as `inspect_generator`."""
    # whatever the transformer's frequencies are: the VAE is the same
    info = inspect_generator(path, vae=vae, heads=heads, frequency_shift=DIFFUSERS_SHIFT)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # as tensor cores read
    model = nn.Module.to(  # pyright: ignore[reportCallIssue] torch's stub knows `memory_format` beside others alone
        _moved(read_vae(info.vae_path), device, dtype), memory_format=layout
    )
    return Vae(cast("AutoencoderKL", model), info.image_size)


def with_new_classes(dit: DiT, count: int, generator: torch.Generator) -> DiT:
    """`dit` for `count` other classes: a fresh class table, the null row and all else shared with `dit`.

    A fresh row is the mean of the old classes' rows with normal noise of 0.02 (DiT's initial spread) from
    `generator` (on the CPU): an image of no class in particular, told apart by tuning.
    """
    if count < 1:
        raise InputError(f"the number of new classes must be 1 or more, not {count}")
    state = dit.state_dict()
    table = state[CLASS_TABLE]
    noise = torch.randn(count, table.shape[1], generator=generator).to(table) * 0.02
    state[CLASS_TABLE] = torch.cat([table[:-1].mean(0) + noise, table[-1:]])
    with torch.device("meta"):
        extended = DiT(replace(dit.config, num_classes=count))
    if difffit.has_scales(dit):
        difffit.add_scales(extended)
    extended.load_state_dict(state, assign=True)
    return extended.train(dit.training)


def save_pipeline(
    dit: DiT,
    vae: "AutoencoderKL",
    out: str | Path,
    *,
    id2label: list[str] | None = None,
    dtype: torch.dtype = torch.float32,
    null_label: int | None = None,
) -> None:
    """Write a folder that plain `DiTPipeline.from_pretrained` loads, DiffFit scales folded in.

    `dtype` is that of the weights as stored; `null_label` as in `export_transformer` (1000 lets diffusers'
    pipeline guide models of fewer classes). InputError if `out` holds anything.
    """
    out = new_folder(out)
    if id2label is not None and len(id2label) != dit.config.num_classes:
        raise InputError(
            f"id2label has {len(id2label)} names, the model {dit.config.num_classes} classes; give one each"
        )
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler: Any = DDIMScheduler(**SCHEDULE, clip_sample=False)  # the pipeline's own annotation is an enum
    pipeline = DiTPipeline(
        transformer=_moved(export_transformer(dit, null_label), "cpu", dtype),
        vae=_moved(copy.deepcopy(vae), "cpu", dtype),
        scheduler=scheduler,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / out.name
        pipeline.save_pretrained(folder)
        if id2label is not None:  # DiTPipeline reads it from here, but does not write it
            index = read_json(folder / "model_index.json") | {"id2label": dict(enumerate(id2label))}
            (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        folder.replace(out)


def new_folder(out: str | Path) -> Path:
    """`out` as an absolute path; InputError if it holds anything or can't be made."""
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out}: must be a new or empty folder to save a pipeline in; name another or clear it"
        )
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"{out}: can't be made, since {above} is no folder that can be written to; name another"
        )
    return out


def _check_schedule(path: Path) -> None:
    """InputError if a pipeline's scheduler says that the model was trained with another noise schedule."""
    if not path.is_file():
        return
    held = read_json(path)
    for name, value in SCHEDULE.items():
        if held.get(name, value) != value:
            raise InputError(f"{path}: {name} must be {value!r}, the schedule of DiT, not {held[name]!r}")


def _class_names(path: Path, num_classes: int) -> list[str] | None:
    """Names in the order of the labels, from a model_index.json; None where it tells none."""
    named = read_json(path).get("id2label") if path.is_file() else None
    if named is None:
        return None
    if set(named) != {str(label) for label in range(num_classes)}:
        raise InputError(
            f"{path}: id2label must name the labels 0 to {num_classes - 1}, one each; it has {len(named)}"
        )
    return [named[str(label)] for label in range(num_classes)]


def _moved(model: Model, device: str | torch.device, dtype: torch.dtype) -> Model:
    nn.Module.to(model, device=device, dtype=dtype)  # in place; diffusers' own `to` warns about nothing
    return model
