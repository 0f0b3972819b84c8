"""The VAE between images and latents: diffusers' AutoencoderKL, latents scaled."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from ims3_ray.display import describe_mismatch
from ims3_ray.errors import InputError

from .dit import DiTConfig
from .files import check_finite, find_weights, read_json, resolve_model

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# names of original files contain the image size
_PUBLISHED = re.compile(r"DiT-(?:S|B|L|XL)-[248]-(\d+)x\1\.pt")
# diffusers' defaults
_DEFAULTS = {"latent_channels": 4, "in_channels": 3, "scaling_factor": 0.18215, "block_out_channels": (64,)}


@dataclass(frozen=True)
class Vae:
    """A diffusers AutoencoderKL in eval mode; latents are its own times `scaling_factor`."""

    model: "AutoencoderKL"
    image_size: int  # height and width that the transformer's latents decode to

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return mean and log-variance (fp32) of the scaled latents of images in [-1, 1].

        For the VAE's posterior N(m, exp(v)) and scaling factor k: mean k m, log-variance v + 2 log k.
        """
        factor = self.model.config["scaling_factor"]
        posterior = self.model.encode(images.to(self.model.dtype))[0]
        return posterior.mean.float() * factor, posterior.logvar.float() + 2 * math.log(factor)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Return images (fp32, clamped to [-1, 1]) of scaled latents."""
        return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Return images (fp32) of scaled latents, not clamped: gradients pass everywhere."""
        latents = (latents / self.model.config["scaling_factor"]).to(self.model.dtype)
        return self.model.decode(cast(torch.FloatTensor, latents))[0].float()


def vae_folder(local: Path, vae: str | Path | None) -> Path:
    """Return the VAE's folder: in `vae` if given, else beside the transformer."""
    holder = local if vae is None else resolve_model(vae)
    if (holder / "vae" / "config.json").is_file():
        return holder / "vae"
    if vae is None:
        raise InputError(f"{local}: has no VAE (vae/config.json); give a folder or hub id (--vae, model.vae)")
    return holder


def vae_config(folder: Path, transformer: DiTConfig) -> dict[str, Any]:
    """Return the VAE's configuration. Raises InputError unless it is an AutoencoderKL that fits."""
    path = folder / "config.json"
    config = _DEFAULTS | read_json(path)
    if config.get("_class_name") != "AutoencoderKL":
        raise InputError(f"{path}: must describe an AutoencoderKL, not a {config.get('_class_name')}")
    if config["latent_channels"] != transformer.in_channels:
        raise InputError(
            f"{path}: the VAE's latents have {config['latent_channels']} channels, the transformer takes "
            f"{transformer.in_channels}; give the VAE of this transformer"
        )
    if config["in_channels"] != 3:
        raise InputError(f"{path}: in_channels must be 3 (RGB images), not {config['in_channels']}")
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(name):
            raise InputError(
                f"{path}: {name} must be absent, not {config[name]}; this package only scales latents"
            )
    return config


def image_size(checkpoint: Path, folder: Path, config: Mapping[str, Any], transformer: DiTConfig) -> int:
    """Return height and width of the images that the VAE in `folder` decodes from the transformer's latents.

    Raises InputError if the checkpoint implies another size, by its own VAE or by the name of a published
    original file. A VAE's `sample_size` implies none: one VAE serves several sizes.
    """
    latent = transformer.sample_size
    size, own = latent * downsampling(config), checkpoint / "vae" / "config.json"
    named = _PUBLISHED.fullmatch(checkpoint.name)
    expected = int(named[1]) if named else size
    if own.is_file():
        expected = latent * downsampling(_DEFAULTS | read_json(own))
    if size != expected:
        raise InputError(
            f"{folder}: decodes {latent} x {latent} latents to {size} pixels, but {checkpoint} is "
            f"for {expected} pixels; give the VAE of this checkpoint"
        )
    return size


def read_vae(folder: str | Path) -> "AutoencoderKL":
    """Load a VAE in fp32, without random draws. Raises InputError for missing or non-finite weights."""
    from diffusers import AutoencoderKL

    folder = Path(folder)
    half = ".fp16." in find_weights(folder)[0].name
    try:
        options = {"variant": "fp16" if half else None, "local_files_only": True, "low_cpu_mem_usage": False}
        loaded: Any = AutoencoderKL.from_pretrained(folder, output_loading_info=True, **options)
        vae, info = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: VAE cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    unexpected, missing = (dict.fromkeys(sorted(info[f"{kind}_keys"])) for kind in ("unexpected", "missing"))
    if problems := describe_mismatch(unexpected, missing):
        raise InputError(f"{folder}: is not the VAE that its config.json describes ({problems})")
    check_finite(vae.state_dict(), folder)
    return vae.eval()


def downsampling(vae_config: Mapping[str, Any]) -> int:
    """Return pixels per latent along one side: every block of the VAE but the last halves it."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)
