"""The VAE alone, for the stages that need no transformer: images to scaled latents and back."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from .files import read_json
from .generator import inspect_generator, read_vae


@dataclass(frozen=True)
class Vae:
    """A diffusers AutoencoderKL in eval mode; latents are scaled by its `scaling_factor`."""

    model: AutoencoderKL
    image_size: int  # height and width that the transformer's latents decode to

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 height width"]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Mean and log-variance (fp32) of the scaled latents of images in [-1, 1].

        The VAE's posterior N(m, exp(v)) with scaling factor k gives mean k m and log-variance v + 2 log k.
        """
        factor = self.model.config.scaling_factor
        posterior = self.model.encode(images.to(self.model.dtype)).latent_dist
        return posterior.mean.float() * factor, posterior.logvar.float() + 2 * math.log(factor)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images (fp32, clamped to [-1, 1]) of scaled latents."""
        latents = (latents / self.model.config.scaling_factor).to(self.model.dtype)
        return self.model.decode(latents).sample.float().clamp(-1, 1)


def load_vae(path: str, *, vae: str | None, device: torch.device, dtype: torch.dtype) -> Vae:
    """The VAE of the generator at `path` (or `vae`, beside an original checkpoint), without the transformer's weights."""
    info = inspect_generator(path, vae=vae)
    return Vae(read_vae(info.vae_path).to(device, dtype), info.image_size)


def vae_config(folder: str) -> dict[str, Any]:
    """The configuration that an AutoencoderKL is built from."""
    return read_json(Path(folder) / "config.json")
