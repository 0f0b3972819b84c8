"""Random inputs of realistic sizes: generators, images, latents and inversions.

Speed does not depend on the values of weights and pixels, so that a benchmark downloads nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ims3_ray.errors import InputError
from ims3_ray.method.seeding import generator, key_seed
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.generator import GeneratorInfo
from ims3_ray.stages.context import Context
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.schemas import Columns

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CLASSES = 10  # image folders
OVERSIZE = 1.25  # image side over the model's, so that images must be resized


@dataclass(frozen=True)
class Size:
    """Shapes of a DiT (patch size 2, learned variance) and a VAE, and the extractor φ used with them."""

    name: str
    hidden_size: int
    depth: int
    heads: int
    sample_size: int = 32  # latent height and width
    num_classes: int = 1000
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)  # Stable Diffusion's, which DiT uses
    vae_layers: int = 2
    vae_groups: int = 32
    scaling_factor: float = 0.18215
    extractor: str = "timm:resnet18?pretrained=false"

    @property
    def image_size(self) -> int:
        return self.sample_size * 2 ** (len(self.vae_channels) - 1)


SIZES = (  # Peebles and Xie 2023, table 1, at 256 pixels; "tiny" is for tests
    Size("tiny", 32, 2, 2, 8, 10, (8, 8), 1, 4, extractor="package://digits"),
    Size("S/2", 384, 12, 6),
    Size("B/2", 768, 12, 12),
    Size("L/2", 1024, 24, 16),
    Size("XL/2", 1152, 28, 16),
)


def size_named(name: str | None) -> Size:
    """The size of this name; the largest if None. Raises InputError for an unknown name."""
    sizes = {size.name: size for size in SIZES}
    if name and name not in sizes:
        raise InputError(f"--size: {name!r} is unknown; choose {', '.join(sizes)}")
    return sizes[name] if name else SIZES[-1]


def write_pipeline(size: Size, folder: Path) -> None:
    """Write a pipeline folder of `size` with random non-zero weights; keep an existing one."""
    if (folder / "model_index.json").is_file():
        return
    dit = DiT(_dit_config(size)).initialize(generator("bench", "dit"), zero_outputs=False)
    with torch.random.fork_rng(devices=[]):  # diffusers rng from the global generator
        torch.manual_seed(key_seed("bench", "vae"))
        vae = _vae(size)
    save_pipeline(dit, vae, folder, id2label=[class_name(label) for label in range(size.num_classes)])


def describe_pipeline(size: Size, folder: Path) -> GeneratorInfo:
    """The description of a generator of `size`, without weights. Writes only the VAE's configuration."""
    config = _dit_config(size)
    with torch.device("meta"):
        dit, vae = DiT(config), _vae(size)
    vae.save_config(folder / "vae")
    dit_size, vae_size = (sum(p.numel() for p in model.parameters()) for model in (dit, vae))
    return GeneratorInfo(
        path=str(folder),
        vae_path=str(folder / "vae"),
        kind="diffusers",
        config=config,
        image_size=size.image_size,
        transformer_parameters=dit_size,
        vae_parameters=vae_size,
        id2label=None,
    )


def _dit_config(size: Size) -> DiTConfig:
    return DiTConfig(
        sample_size=size.sample_size,
        hidden_size=size.hidden_size,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=size.num_classes,
        frequency_shift=1,  # as in diffusers
        norm_eps=1e-5,
    )


def _vae(size: Size) -> "AutoencoderKL":
    from diffusers import AutoencoderKL

    levels = len(size.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType] tuples of any length
        up_block_types=("UpDecoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        block_out_channels=size.vae_channels,  # pyright: ignore[reportArgumentType]
        layers_per_block=size.vae_layers,
        norm_num_groups=size.vae_groups,
        latent_channels=_dit_config(size).in_channels,
        sample_size=size.image_size,
        scaling_factor=size.scaling_factor,
    )


def class_name(label: int) -> str:
    return f"class-{label:04d}"


def write_images(size: Size, folder: Path, per_class: int) -> None:
    """Write class folders of `per_class` JPEGs, seeded smooth colours with noise; keep existing files."""
    side = round(size.image_size * OVERSIZE)
    for label in range(min(CLASSES, size.num_classes)):
        (folder / class_name(label)).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            path = folder / class_name(label) / f"{index:04d}.jpg"
            if path.is_file():
                continue
            rng = np.random.default_rng(key_seed("bench", "image", label, index))
            field = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            pixels = np.clip(np.asarray(field) + rng.normal(0, 8, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, "JPEG", quality=90)


def write_latents(context: Context, work: Directory, parts: int, rows: int) -> tuple[Directory, Directory]:
    """Write normal latents and inversions in the stages' format: `parts` files of `rows` rows each."""
    mirror, classes = context.config.data.mirror, len(context.classes)
    shape = context.info.config.latent_shape
    latents, inversions = work / "latents", work / "inversions"
    latents.delete()  # an earlier benchmark may have left more parts
    inversions.delete()
    for part in range(parts):
        name = f"part-{part:05d}.parquet"
        rng = np.random.default_rng(key_seed("bench", "latents", part))
        ids = np.array([f"{part:05d}-{row:05d}" for row in range(rows)], dtype=object)
        keys: Columns = {"image_id": ids, "label": np.arange(rows, dtype=np.int64) % classes}
        latent_columns, inversion_columns = dict(keys), dict(keys)
        for view in ("", "mirror_")[: context.num_views]:
            mean = rng.standard_normal((rows, *shape), dtype=np.float32).astype(np.float16)
            latent_columns |= {f"{view}mean": mean, f"{view}logvar": np.full_like(mean, -6)}
            points = (rows, context.config.invert.steps, *shape)
            inversion_columns[f"{view}inversion"] = rng.standard_normal(points, np.float32).astype(np.float16)
        table = schemas.MIRRORED_LATENTS if mirror else schemas.LATENTS
        latents.write(name, schemas.to_parquet(latent_columns, table))
        table = schemas.MIRRORED_INVERSIONS if mirror else schemas.INVERSIONS
        inversions.write(name, schemas.to_parquet(inversion_columns, table))
    return latents, inversions
