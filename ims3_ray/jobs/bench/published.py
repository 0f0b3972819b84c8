"""The published settings of each stage, written with this project's parts: what its own path is measured
against.

Sampling and fine-tuning as the code of IMS3 and of the DiT that it builds on run them (sample.py and
train.py); encoding and inversion, which that code has no stage for, as the plain loop over single images.
Eager, fp32, with TF32 matrices and convolutions on a GPU; on a CPU one thread, as this project's actors have.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ims3_ray.data.pixels import encode_png
from ims3_ray.data.reading import BatchReader, payloads
from ims3_ray.method import difffit, losses
from ims3_ray.method.ddim import add_noise, invert, level, noise_of, sample_ancestral, with_guidance
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, alphas_bar, inversion_grid, respaced
from ims3_ray.models.batches import to_images, to_pixels
from ims3_ray.models.generator import load_vae
from ims3_ray.models.tuned import TunedModel, predictor
from ims3_ray.models.vae import Vae
from ims3_ray.stages.context import Context
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory

from .models import random_latents
from .operations import PUBLISHED_STEPS, operations
from .sides import Side

GUIDANCE = 4.0
SAMPLED_AT_ONCE = 10  # doubled by guidance
TUNED_AT_ONCE = 8
LEARNING_RATE, EMA_DECAY, LABEL_DROPOUT, MATCHING_WEIGHT = 1e-3, 0.9999, 0.1, 0.002
LOOP_IMAGES = 8  # that a call of the loops over single images makes
TUNED_IMAGES = 64  # kept in memory: reading files is left out, in favour of the published settings


def published_side(context: Context, stage: str, work: Directory) -> Side:
    """The side "published" of `stage`; what it reads is written below `work`."""
    shared = {"device": context.machine.device, "model": context.tuned_model()}
    train, labels = context.images["train"], context.model_labels
    reader = {"images": train.directory, "image_size": context.info.image_size}
    vae = {"vae": context.config.model.vae}
    how = "fp32" if context.machine.device == "cpu" else "TF32"
    if stage == "sample":
        build, size, images = Sampling, SAMPLED_AT_ONCE, SAMPLED_AT_ONCE
        arguments = shared | vae | {"label": labels[0], "channels": context.config.sample.guidance_channels}
        how += f" eager, {PUBLISHED_STEPS} ancestral steps, guidance {GUIDANCE:g}, PNG in the loop"
    elif stage == "finetune":
        build, size, images = FineTuning, TUNED_AT_ONCE, TUNED_AT_ONCE
        payload = payloads(train, train.subset(None)[:TUNED_IMAGES].tolist(), TUNED_IMAGES)[0]
        arguments = shared | vae | reader | {"payload": payload, "model_labels": labels}
        how += " eager, VAE in the loop, one more pass to invert, gradients and EMA of all parameters"
    elif stage == "encode":
        build, size, images = Encoding, 1, LOOP_IMAGES
        payload = payloads(train, (np.arange(images) % len(train)).tolist(), images)[0]
        arguments = shared | vae | reader | {"payload": payload, "mirror": context.config.data.mirror}
        how += " eager, image by image"
    else:
        build, size, images = Inversion, 1, LOOP_IMAGES
        latents, _ = random_latents(context, work / "published", 1, images)
        arguments = shared | {
            "latents": latents,
            "points": context.config.invert.points,
            "model_labels": labels,
        }
        arguments["mirror"] = context.config.data.mirror
        how += " eager, image by image"
    operated = operations(context, stage).published
    return Side(
        "published",
        how,
        build,
        arguments,
        size,
        images,
        operated,
        "published settings (--no-published leaves them out)",
    )


def plain_device(kind: str) -> torch.device:
    """The device with TF32 on, or one thread."""
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    else:
        torch.set_num_threads(1)
    return torch.device(kind)


def plain_vae(model: TunedModel, vae: str | None, device: torch.device) -> Vae:
    return load_vae(model.path, vae=vae, heads=model.heads, device=device, dtype=torch.float32)


class Sampling:
    """Ten images of one class a call, guided, as PNGs."""

    def __init__(self, device: str, model: TunedModel, vae: str | None, label: int, channels: int):
        self._device = plain_device(device)
        self._dit = model.pretrained().to(self._device).eval().requires_grad_(False)
        self._vae = plain_vae(model, vae, self._device)
        self._label, config = label, self._dit.config
        self._shape = (SAMPLED_AT_ONCE, config.in_channels, config.sample_size, config.sample_size)
        self._predict = with_guidance(
            predictor(self._dit), self._dit.null_label, scale=GUIDANCE, channels=channels
        )
        self._timesteps, self._abar = respaced(PUBLISHED_STEPS), alphas_bar()

    @torch.no_grad()
    def __call__(self) -> list[bytes]:
        def fresh() -> Tensor:
            return torch.randn(self._shape, device=self._device)

        labels = torch.full((SAMPLED_AT_ONCE,), self._label, device=self._device)
        z = sample_ancestral(self._predict, fresh(), labels, self._timesteps, self._abar, fresh)
        return [encode_png(pixels) for pixels in to_pixels(self._vae.decode(z)).cpu().numpy()]


class FineTuning:
    """A step on eight images a call: encoded anew, noised, matched with a one-step inversion (a pass of its
    own).
    """

    def __init__(
        self,
        device: str,
        model: TunedModel,
        vae: str | None,
        images: Directory,
        image_size: int,
        payload: dict[str, Any],
        model_labels: list[int],
    ):
        self._device = plain_device(device)
        self._vae = plain_vae(model, vae, self._device)
        pixels, columns, _ = BatchReader(images, image_size)(payload)
        self._pixels, self._labels = torch.from_numpy(pixels), torch.tensor(model_labels)[columns["label"]]
        self.dit = model.pretrained().to(self._device).eval()
        difffit.add_scales(self.dit)
        self.dit.requires_grad_(True)  # frozen weights are left out of the optimiser alone
        self.ema = copy.deepcopy(self.dit).requires_grad_(False)
        named = dict(self.dit.named_parameters())
        tuned = [named[name] for name in difffit.trainable_names(self.dit)]
        self.optimizer = torch.optim.AdamW(tuned, lr=LEARNING_RATE, weight_decay=0)
        self._predict, self._abar = predictor(self.dit), alphas_bar()

    def __call__(self) -> None:
        rows = torch.randint(len(self._pixels), (TUNED_AT_ONCE,))
        mean, logvar = self._vae.encode(to_images(self._pixels[rows].to(self._device)))
        z0 = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        self._loss(z0, self._labels[rows].to(self._device)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()  # of the optimiser's parameters: the others' gradients add up unused
        self._average()

    def _loss(self, z0: Tensor, labels: Tensor) -> Tensor:
        """Diffusion loss (and the variational one of a model that learns its variance) plus λ_IM times the
        matching loss.
        """
        t = torch.randint(1, NUM_TRAIN_TIMESTEPS, (len(z0),), device=self._device)
        dropped = torch.rand(len(z0), device=self._device) < LABEL_DROPOUT
        labels = torch.where(dropped, self.dit.null_label, labels)
        eps = torch.randn_like(z0)
        z_t = add_noise(z0, eps, abar=level(self._abar, t))
        output = self._predict(z_t, t, labels)
        predicted = noise_of(output, z0.shape[1])
        loss = losses.diffusion_loss(predicted, eps).mean()
        if output.shape[1] == 2 * z0.shape[1]:
            here, below = level(self._abar, t), level(self._abar, t - 1)
            loss = loss + losses.variational_loss(output, z_t, z0, abar_from=here, abar_to=below).mean()
        pair = losses.one_step_pair(self._predict, z0, z_t, predicted, t, labels, self._abar)
        return loss + MATCHING_WEIGHT * losses.matching_loss(*pair).mean()

    @torch.no_grad()
    def _average(self) -> None:
        for averaged, parameter in zip(self.ema.parameters(), self.dit.parameters(), strict=True):
            averaged.mul_(EMA_DECAY).add_(parameter, alpha=1 - EMA_DECAY)

    def checkpoint(self) -> dict[str, Any]:
        """What the published code saves: model, average and optimiser."""
        return {
            "model": self.dit.state_dict(),
            "ema": self.ema.state_dict(),
            "opt": self.optimizer.state_dict(),
        }


class Encoding:
    """Images read, decoded and encoded one by one."""

    def __init__(
        self,
        device: str,
        model: TunedModel,
        vae: str | None,
        images: Directory,
        image_size: int,
        payload: dict[str, Any],
        mirror: bool,
    ):
        self._device = plain_device(device)
        self._vae = plain_vae(model, vae, self._device)
        self._read, self._mirror = BatchReader(images, image_size), mirror
        self._single = [
            {name: values[row : row + 1] for name, values in payload.items()} for row in range(LOOP_IMAGES)
        ]

    @torch.no_grad()
    def __call__(self) -> list[np.ndarray]:
        """The means (1, C, h, w) of every view of every image."""
        means = []
        for payload in self._single:
            pixels, _, _ = self._read(payload)
            for view in (pixels, pixels[..., ::-1].copy()) if self._mirror else (pixels,):
                mean, _ = self._vae.encode(to_images(torch.from_numpy(view).to(self._device)))
                means.append(mean.cpu().numpy())
        return means


class Inversion:
    """Latents inverted one by one."""

    def __init__(
        self,
        device: str,
        model: TunedModel,
        latents: Directory,
        points: int,
        model_labels: list[int],
        mirror: bool,
    ):
        self._device = plain_device(device)
        self._predict = predictor(model.pretrained().to(self._device).eval().requires_grad_(False))
        rows = tables.from_parquet(
            latents.read("part-00000.parquet"), tables.MIRRORED_LATENTS if mirror else tables.LATENTS
        )
        self._views = [
            torch.from_numpy(rows[name].copy()) for name in (("mean", "mirror_mean") if mirror else ("mean",))
        ]
        self._labels = torch.from_numpy(np.array(model_labels)[rows["label"]])
        self._grid, self._abar = inversion_grid(points), alphas_bar()

    @torch.no_grad()
    def __call__(self) -> list[np.ndarray]:
        """The trajectories (1, S, C, h, w) of every view of every image."""
        trajectories = []
        for row, label in enumerate(self._labels.to(self._device)):
            for view in self._views:
                z0 = view[row : row + 1].to(self._device).float()
                trajectories.append(
                    invert(self._predict, z0, label[None], self._grid, self._abar).cpu().numpy()
                )
        return trajectories
