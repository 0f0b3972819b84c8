"""A generator small enough to make anew in every test: 10 classes, 8x8 latents, 16x16 images."""

import json

import torch
from diffusers import AutoencoderKL

from ims3_ray.method import difffit
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.finetuned import save_adapter
from ims3_ray.storage.artifacts import complete, open_directory

NAMES = [f"class {label}" for label in range(10)]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_dit(**changes) -> DiT:
    sizes = {
        "sample_size": 8,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 4,
        "num_classes": 10,
        "frequency_shift": 1.0,
    }
    return DiT(DiTConfig(**sizes | changes)).initialize(seeded(0), zero_outputs=False).eval()


def small_vae(**changes) -> AutoencoderKL:
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "scaling_factor": 0.5}
    sizes |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(**sizes | changes).eval()


def inputs(num_classes: int = 10):
    generator = seeded(1)
    return (
        torch.randn(3, 4, 8, 8, generator=generator),
        torch.tensor([0, 500, 999]),
        torch.tensor([1, 2, num_classes]),
    )


def edit(path, change) -> None:
    """Change the JSON object in a file."""
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


def diffusers_folder(folder):
    """A diffusers-born pipeline folder with 10 classes, 8x8 latents and 16x16 images."""
    save_pipeline(small_dit(), small_vae(), folder, id2label=NAMES)
    return folder


def original_file(path, dit: DiT | None = None, **held):
    torch.save(held or (dit or small_dit()).state_dict(), path)
    return path


def small_adapter(path, own_classes=None, frequency_shift=None, **changes):
    """A complete adapter folder as fine-tuning leaves it, its values drawn; gives its "ema" and "last"
    values.
    """
    dit = small_dit(**changes)
    difffit.prepare(dit)
    values = difffit.trainable(dit)
    draws = seeded(3)
    tuned = {
        which: {name: v.detach() + 0.3 * torch.randn(v.shape, generator=draws) for name, v in values.items()}
        for which in ("last", "ema")
    }
    directory = open_directory(str(path))
    save_adapter(directory, tuned["last"], tuned["ema"])
    complete(directory, {"stage": "finetune", "own_classes": own_classes, "frequency_shift": frequency_shift})
    return tuned


def striped(per_class, seed, side=8):
    """Images and labels: class 0 has stripes across, class 1 stripes down, both under noise."""
    labels = torch.arange(2).repeat(per_class)
    across = (torch.arange(side) // (side // 4) % 2 * 150).expand(3, side, side)
    stripes = torch.stack((across.transpose(1, 2), across))[labels]
    return (stripes + torch.randint(0, 100, stripes.shape, generator=seeded(seed))).to(torch.uint8), labels


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))
