"""The VAE between images and the transformer's latents: diffusers' AutoencoderKL, latents scaled."""

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

# original files, named by the size of their images
_PUBLISHED = re.compile(r"DiT-(?:S|B|L|XL)-[248]-(\d+)x\1\.pt")
# diffusers'
_DEFAULTS = {"latent_channels": 4, "in_channels": 3, "scaling_factor": 0.18215, "block_out_channels": (64,)}


@dataclass(frozen=True)
class Vae:
    """A diffusers AutoencoderKL in eval mode. Latents are the model's own times its `scaling_factor`."""

    model: "AutoencoderKL"
    image_size: int  # height and width that the transformer's latents decode to

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Mean and log-variance (fp32) of the scaled latents of images in [-1, 1].

        The VAE's posterior N(m, exp(v)) with scaling factor k gives mean k m and log-variance v + 2 log k.
        """
        factor = self.model.config["scaling_factor"]
        posterior = self.model.encode(images.to(self.model.dtype))[0]
        return posterior.mean.float() * factor, posterior.logvar.float() + 2 * math.log(factor)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images (fp32, clamped to [-1, 1]) of scaled latents."""
        return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images (fp32) of scaled latents, not clamped: a gradient passes everywhere."""
        latents = (latents / self.model.config["scaling_factor"]).to(self.model.dtype)
        return self.model.decode(cast(torch.FloatTensor, latents))[0].float()


def vae_folder(local: Path, vae: str | Path | None) -> Path:
    """The folder of the VAE: in the one given, or beside the transformer."""
    holder = local if vae is None else resolve_model(vae)
    if (holder / "vae" / "config.json").is_file():
        return holder / "vae"
    if vae is None:
        raise InputError(
            f"{local}: brings no VAE (vae/config.json); name a folder or hub id as vae (--vae, model.vae)"
        )
    return holder


def vae_config(folder: Path, transformer: DiTConfig) -> dict[str, Any]:
    """The VAE's configuration; InputError unless it is an AutoencoderKL with the transformer's latents."""
    path = folder / "config.json"
    config = _DEFAULTS | read_json(path)
    if config.get("_class_name") != "AutoencoderKL":
        raise InputError(
            f"{path}: must describe an AutoencoderKL, but describes a {config.get('_class_name')}"
        )
    if config["latent_channels"] != transformer.in_channels:
        raise InputError(
            f"{path}: the VAE's latents have {config['latent_channels']} channels, the transformer takes "
            f"{transformer.in_channels}; name a VAE that belongs to the transformer"
        )
    if config["in_channels"] != 3:
        raise InputError(f"{path}: in_channels must be 3 (RGB images), not {config['in_channels']}")
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(name):
            raise InputError(
                f"{path}: {name} must be absent, not {config[name]}; latents are scaled, never shifted"
            )
    return config


def image_size(checkpoint: Path, folder: Path, config: Mapping[str, Any], transformer: DiTConfig) -> int:
    """Height and width of the images that the VAE in `folder` makes of the transformer's latents.

    InputError where the checkpoint tells another size: by a VAE of its own, or by the name of a published
    original file. A VAE's own `sample_size` tells none, since one VAE serves several sizes.
    """
    latent = transformer.sample_size
    size, own = latent * downsampling(config), checkpoint / "vae" / "config.json"
    named = _PUBLISHED.fullmatch(checkpoint.name)
    stated = int(named[1]) if named else size
    if own.is_file():
        stated = latent * downsampling(_DEFAULTS | read_json(own))
    if size != stated:
        raise InputError(
            f"{folder}: this VAE makes images of {size} pixels of the transformer's {latent} x {latent} "
            f"latents, but {checkpoint} is for {stated} pixels; name a VAE that belongs to it"
        )
    return size


def read_vae(folder: str | Path) -> "AutoencoderKL":
    """The VAE of a folder, in fp32; InputError unless its weights are whole and finite. Draws nothing at
    random.
    """
    from diffusers import AutoencoderKL

    folder = Path(folder)
    half = ".fp16." in find_weights(folder)[0].name
    try:
        options = {"variant": "fp16" if half else None, "local_files_only": True, "low_cpu_mem_usage": False}
        loaded: Any = AutoencoderKL.from_pretrained(folder, output_loading_info=True, **options)
        vae, info = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: the VAE cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from error
    left_over, missing = (dict.fromkeys(sorted(info[f"{kind}_keys"])) for kind in ("unexpected", "missing"))
    if problems := describe_mismatch(left_over, missing):
        raise InputError(f"{folder}: is not the VAE that its config.json describes ({problems})")
    check_finite(vae.state_dict(), folder)
    return vae.eval()


def downsampling(vae_config: Mapping[str, Any]) -> int:
    """Pixels per latent along one side: every block of the VAE but the last halves it."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)
