"""The generator: a DiT and the VAE whose latents it denoises; loading, inspecting, saving as a diffusers pipeline.

Latents everywhere in this package are scaled: the VAE's own times its `scaling_factor`.
"""

import copy
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from ims3_ray.errors import InputError
from ims3_ray.method import difffit
from ims3_ray.method.schedule import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS
from ims3_ray.models.checkpoints import CLASS_TABLE, export_transformer, inspect_transformer, load_transformer
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.files import find_weights, read_json, resolve_model, shortened

__all__ = [
    "Generator",
    "GeneratorInfo",
    "inspect_generator",
    "load_generator",
    "load_transformer",
    "resolve_model",
    "save_pipeline",
    "with_new_classes",
]

SCHEDULE = {  # the noise schedule that DiT's checkpoints were trained with
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "trained_betas": None,
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class Generator:
    """Transformer and VAE, in eval mode, and the names of the classes where the checkpoint tells them."""

    transformer: DiT
    vae: AutoencoderKL
    id2label: list[str] | None = None

    @property
    def num_classes(self) -> int:
        return self.transformer.config.num_classes

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        return self.transformer.config.sample_size * _downsampling(self.vae.config)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        config = self.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Mean and log-variance (fp32) of the scaled latents of images in [-1, 1].

        The VAE's posterior N(m, exp(v)) with scaling factor k gives mean k m and log-variance v + 2 log k.
        """
        factor = self.vae.config.scaling_factor
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return posterior.mean.float() * factor, posterior.logvar.float() + 2 * math.log(factor)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images (fp32, clamped to [-1, 1]) of scaled latents."""
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(latents).sample.float().clamp(-1, 1)


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
        return self.config.in_channels, self.config.sample_size, self.config.sample_size


def inspect_generator(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    heads: int | None = None,
    frequency_shift: float | None = None,
) -> GeneratorInfo:
    """What `load_generator` would load with the same arguments, from JSON and the headers of the weight files.

    Raises InputError for a folder that is missing or of another kind, names or shapes that don't fit the configuration,
    a VAE with other latents, another noise schedule, or class names that don't fit the number of classes.
    """
    local = resolve_model(path)
    checkpoint = inspect_transformer(local, heads, frequency_shift)
    vae_folder = _vae_folder(local, vae)
    vae_config = _vae_config(vae_folder, checkpoint.config)
    find_weights(vae_folder)
    _check_schedule(local / "scheduler" / "scheduler_config.json")
    with torch.device("meta"):
        transformer_parameters = _count(DiT(checkpoint.config))
        vae_parameters = _count(AutoencoderKL.from_config(vae_config))
    return GeneratorInfo(
        path=str(local),
        vae_path=str(vae_folder),
        kind=checkpoint.kind,
        config=checkpoint.config,
        image_size=checkpoint.config.sample_size * _downsampling(vae_config),
        scaling_factor=vae_config["scaling_factor"],
        transformer_parameters=transformer_parameters,
        vae_parameters=vae_parameters,
        id2label=_class_names(local / "model_index.json", checkpoint.config.num_classes),
    )


def load_generator(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vae: str | Path | None = None,
    heads: int | None = None,
    frequency_shift: float | None = None,
) -> Generator:
    """Transformer and VAE of a diffusers pipeline folder, hub id, `package://name`, or original `.pt` file with `vae`.

    `dtype` is that of both; `heads` and `frequency_shift` as in `load_transformer`. Raises InputError as
    `inspect_generator` does, before any weight is read.
    """
    info = inspect_generator(path, vae=vae, heads=heads, frequency_shift=frequency_shift)
    transformer = load_transformer(info.path, heads, frequency_shift).to(device, dtype)
    autoencoder = read_vae(info.vae_path).to(device, dtype)
    return Generator(transformer, autoencoder, info.id2label)


def with_new_classes(dit: DiT, count: int, generator: torch.Generator) -> DiT:
    """`dit` for `count` other classes: a fresh class table, the null row and all else kept (shared with `dit`).

    A fresh row is the mean of the old classes' rows with normal noise of 0.02 (DiT's initial spread) from `generator`
    (on the CPU): an image of no class in particular, told apart by tuning.
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
    vae: AutoencoderKL,
    out: str | Path,
    *,
    id2label: list[str] | None = None,
    scheduler: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    null_label: int | None = None,
) -> None:
    """Write a folder that plain `DiTPipeline.from_pretrained` loads, DiffFit scales folded in.

    `scheduler` overrides settings of the DDIM scheduler; `dtype` is that of the weights as stored; `null_label` as in
    `export_transformer` (1000 lets diffusers' pipeline guide models of fewer classes). InputError if `out` holds
    anything.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: must be a new or empty folder to save a pipeline in; name another or clear it")
    if id2label is not None and len(id2label) != dit.config.num_classes:
        raise InputError(
            f"id2label has {len(id2label)} names, the model {dit.config.num_classes} classes; give one each"
        )
    settings = {key: value for key, value in SCHEDULE.items() if value is not None} | {"clip_sample": False}
    pipeline = DiTPipeline(
        transformer=export_transformer(dit, null_label).to(dtype),
        vae=copy.deepcopy(vae).to("cpu", dtype),
        scheduler=DDIMScheduler(**settings | (scheduler or {})),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / out.name
        pipeline.save_pretrained(folder)
        if id2label is not None:  # DiTPipeline reads it from here, but does not write it
            index = read_json(folder / "model_index.json") | {"id2label": dict(enumerate(id2label))}
            (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        folder.replace(out)


def _vae_folder(local: Path, vae: str | Path | None) -> Path:
    """The folder of the VAE: in the one given, or beside the transformer."""
    holder = local if vae is None else resolve_model(vae)
    if (holder / "vae" / "config.json").is_file():
        return holder / "vae"
    if vae is None:
        raise InputError(f"{local}: brings no VAE (vae/config.json); name the folder or hub id of one as vae")
    return holder


def _vae_config(folder: Path, transformer: DiTConfig) -> dict[str, Any]:
    """The VAE's configuration; InputError unless it is an AutoencoderKL whose latents the transformer takes."""
    path = folder / "config.json"
    config = {"latent_channels": 4, "in_channels": 3, "scaling_factor": 0.18215} | read_json(path)
    if config.get("_class_name") != "AutoencoderKL":
        raise InputError(f"{path}: must describe an AutoencoderKL, but describes a {config.get('_class_name')}")
    if config["latent_channels"] != transformer.in_channels:
        raise InputError(
            f"{path}: the VAE's latents have {config['latent_channels']} channels, the transformer takes "
            f"{transformer.in_channels}; name a VAE that belongs to the transformer"
        )
    if config["in_channels"] != 3:
        raise InputError(f"{path}: in_channels must be 3 (RGB images), not {config['in_channels']}")
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(name):
            raise InputError(f"{path}: {name} must be absent, not {config[name]}; latents are scaled, never shifted")
    return config


def read_vae(folder: str | Path) -> AutoencoderKL:
    """The VAE of a folder, in fp32; InputError if its weights are not whole. Leaves the global random state alone."""
    folder = Path(folder)
    half = ".fp16." in find_weights(folder)[0].name
    with torch.random.fork_rng(devices=[]):
        try:
            vae, told = AutoencoderKL.from_pretrained(
                folder,
                variant="fp16" if half else None,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{folder}: the VAE cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    problems = {"missing": told["missing_keys"], "left over": told["unexpected_keys"]}
    names = "; ".join(f"{problem}: {shortened(sorted(keys))}" for problem, keys in problems.items() if keys)
    if names:
        raise InputError(f"{folder}: is not the VAE that its config.json describes ({names})")
    return vae.eval()


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
        raise InputError(f"{path}: id2label must name the labels 0 to {num_classes - 1}, one each; it has {len(named)}")
    return [named[str(label)] for label in range(num_classes)]


def _downsampling(vae_config: Mapping[str, Any]) -> int:
    """Pixels per latent along one side: every block of the VAE but the last halves it."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
