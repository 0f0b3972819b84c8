"""What stages cost: operations counted by torch on networks without weights, bytes from shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ims3_ray.cluster.fan_out import CALLS_PER_ACTOR
from ims3_ray.evaluation.rules import Protocol
from ims3_ray.models.dit import DiT
from ims3_ray.models.extractor import load_extractor, without_weights
from ims3_ray.models.files import read_json

from .context import Context

START_S = 6.0  # of a pool of workers
BACKWARD = 3  # a training step costs about three forward passes
PNG_BYTES_A_PIXEL = 1.8  # of 3: less of smooth images, more of small and noisy ones
KEY_BYTES = 1000.0  # of a row that the driver knows by its keys alone, with what stages make of them


@dataclass(frozen=True)
class Cost:
    """What a stage has to do, and what its workers hold."""

    rows: int
    operations: float = 0.0  # a row; a multiplication and an addition are two
    disk: float = 0.0  # bytes of the artefact
    memory: float = 0.0  # bytes that a worker holds beside its process
    driver: float = 0.0  # bytes that the driver holds beside its process and the list of images
    start_s: float = START_S


@dataclass(frozen=True)
class Forward:
    """Operations an image of the DiT, of the VAE's two halves and of the extractor φ; and φ's dimension."""

    dit: float
    encode: float
    decode: float
    embed: float
    feature_dim: int


def count_forward(context: Context) -> Forward:
    from diffusers import AutoencoderKL  # seconds to import, which a run has no use for

    info = context.info
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(read_json(Path(info.vae_path) / "config.json"))
        dit = DiT(info.config)
        z, label = torch.zeros(1, *info.latent_shape), torch.zeros(1, dtype=torch.int64)
        image = torch.zeros(1, 3, info.image_size, info.image_size)
    extractor = load_extractor(without_weights(context.config.embed.extractor))
    assert isinstance(vae, AutoencoderKL)  # else with what it left out, if that is asked for
    return Forward(
        dit=count_operations(dit, z, label, label),
        encode=count_operations(vae.encode, image),
        decode=count_operations(vae.decode, z),
        embed=count_operations(extractor, torch.zeros(image.shape)),
        feature_dim=extractor.dim,
    )


def count_operations(function: Callable[..., object], *arguments: torch.Tensor) -> float:
    """Operations of `function(*arguments)`; on the meta device they are counted without being done."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return float(counter.get_total_flops())


def classifier_operations(rules: Protocol, num_classes: int) -> float:
    """Of one forward pass of the protocol's network over one image."""
    image = torch.zeros(1, rules.channels, rules.image_size, rules.image_size, device="meta")
    return count_operations(rules.build(num_classes).to("meta"), image)


def classifier_bytes(rules: Protocol, num_classes: int) -> float:
    """Of the weights of the protocol's network, in float32."""
    return 4.0 * sum(parameter.numel() for parameter in rules.build(num_classes).parameters())


def parts_bytes(rows: int, row: float) -> float:
    """Of the parts of `rows` rows that an actor has in memory at once, beside what each was made from."""
    return CALLS_PER_ACTOR * 2 * rows * row


def pixel_bytes(images: float, image_size: int) -> float:
    """Of images in memory, a byte a channel."""
    return 3.0 * images * image_size**2


def latent_bytes(context: Context) -> int:
    """Of one latent in float16."""
    channels, height, width = context.info.latent_shape
    return 2 * channels * height * width


def png_bytes(context: Context) -> float:
    return PNG_BYTES_A_PIXEL * context.info.image_size**2


def generator_bytes(context: Context) -> float:
    """Of the generator's weights in float32."""
    return 4.0 * (context.info.transformer_parameters + context.info.vae_parameters)
