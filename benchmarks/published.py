"""The published settings of each stage, written with this project's parts.

Sampling and fine-tuning follow the code of IMS3 and of DiT (sample.py and train.py). That code has no stage
for encoding and inversion: here these loop over single images. All run eagerly in fp32, with TF32 matrices
and convolutions on a GPU, and on one thread on a CPU, as this project's actors do.
"""

import copy
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from ims3_ray.data.loader import BatchReader, payloads
from ims3_ray.data.transforms import encode_png
from ims3_ray.method import difffit, losses
from ims3_ray.method.ddim import (
    abar_at,
    add_noise,
    ancestral_stepper,
    broadcast_timestep,
    invert,
    noise_of,
    sample,
    with_guidance,
)
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, alphas_bar, inversion_grid, space_timesteps
from ims3_ray.models.device import to_images, to_pixels
from ims3_ray.models.dit import DiT
from ims3_ray.models.finetuned import predictor
from ims3_ray.models.generator import load_vae
from ims3_ray.models.vae import Vae
from ims3_ray.stages.base import count_forward
from ims3_ray.stages.context import Context

from .compare import Variant
from .ours import pool_operations, step_operations

STEPS, GUIDANCE = 50, 4.0
LEARNING_RATE, EMA_DECAY, LABEL_DROPOUT, MATCHING_WEIGHT = 1e-3, 0.9999, 0.1, 0.002
TUNED_IMAGES = 64  # kept in memory: reading is not timed, which favours the published settings


def published_variant(context: Context, stage: str) -> Variant:
    """The variant "published" of `stage`."""
    build = {"sample": Sampling, "finetune": FineTuning, "encode": Encoding, "invert": Inversion}[stage]
    return Variant(
        name="published",
        settings=f"{'fp32' if context.machine.device == 'cpu' else 'TF32'} eager, {build.settings}",
        build=build,
        arguments={"context": context},
        batch_size=build.batch_size,
        images=build.images,
        steps=build.steps,
        operations=build.operations(context),
        batch_field="published settings (skip them with --no-published)",
    )


class Published(ABC):
    """Built in its own process; one call processes `images` images."""

    settings = "image by image"
    batch_size, images, steps = 1, 8, 1

    def __init__(self, context: Context):
        device = context.machine.device
        if device == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        else:
            torch.set_num_threads(1)
        self._device, self._context = torch.device(device), context
        self._abar = alphas_bar().to(self._device)

    @abstractmethod
    def __call__(self) -> object: ...

    @staticmethod
    @abstractmethod
    def operations(context: Context) -> float:
        """Operations per image; a multiplication and an addition count as two."""

    def _dit(self) -> DiT:
        return self._context.tuned_model().pretrained().to(self._device).eval().requires_grad_(False)

    def _vae(self) -> Vae:
        model, vae = self._context.tuned_model(), self._context.config.model.vae
        return load_vae(model.path, vae=vae, heads=model.heads, device=self._device, dtype=torch.float32)

    def _reader(self) -> BatchReader:
        return BatchReader(self._context.images["train"].directory, self._context.info.image_size)


class Sampling(Published):
    """A call draws ten images of one class, with guidance, and encodes them as PNG."""

    settings = f"{STEPS} ancestral steps, guidance {GUIDANCE:g}, PNG in the loop"
    batch_size, images, steps = 10, 10, STEPS

    def __init__(self, context: Context):
        super().__init__(context)
        dit, self._decoder, channels = self._dit(), self._vae(), context.config.sample.guidance_channels
        guided = with_guidance(predictor(dit), dit.null_label, scale=GUIDANCE, channels=channels)
        self._predict = broadcast_timestep(guided)

    @staticmethod
    def operations(context: Context) -> float:
        forward = count_forward(context)
        return STEPS * 2 * forward.dit + forward.decode

    @torch.no_grad()
    def __call__(self) -> list[bytes]:
        shape = (self.images, *self._context.info.config.latent_shape)

        def fresh() -> Tensor:
            return torch.randn(shape, device=self._device)

        labels = torch.full((self.images,), self._context.model_labels[0], device=self._device)
        timesteps = space_timesteps(STEPS)
        z = sample(ancestral_stepper(timesteps, fresh), self._predict, fresh(), labels, timesteps, self._abar)
        return [encode_png(pixels) for pixels in to_pixels(self._decoder.decode(z)).cpu().numpy()]


class FineTuning(Published):
    """A call runs one step on eight images: encode, add noise, match with a one-step inversion."""

    settings = "VAE in the loop, one more pass to invert, EMA of all parameters"
    batch_size = images = 8

    def __init__(self, context: Context):
        super().__init__(context)
        self._encoder, train = self._vae(), context.images["train"]
        (payload, *_) = payloads(train, train.subset(None)[:TUNED_IMAGES].tolist(), TUNED_IMAGES)
        pixels, columns, _ = self._reader()(payload)
        self._pixels = torch.from_numpy(pixels)
        self._labels = torch.tensor(context.model_labels)[columns["label"]]
        self.dit = self._dit()
        difffit.add_scales(self.dit)
        self.ema = copy.deepcopy(self.dit)
        tuned = list(difffit.trainable(self.dit).values())
        for parameter in tuned:  # all others are frozen
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(tuned, lr=LEARNING_RATE, weight_decay=0)
        self._predict = predictor(self.dit)

    @staticmethod
    def operations(context: Context) -> float:
        forward = count_forward(context)
        return forward.encode + forward.dit + step_operations(context.info.config)

    def __call__(self) -> None:
        rows = torch.randint(len(self._pixels), (self.batch_size,))
        mean, logvar = self._encoder.encode(to_images(self._pixels[rows].to(self._device)))
        z0 = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        self._loss(z0, self._labels[rows].to(self._device)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for averaged, parameter in zip(self.ema.parameters(), self.dit.parameters(), strict=True):
                averaged.mul_(EMA_DECAY).add_(parameter, alpha=1 - EMA_DECAY)

    def _loss(self, z0: Tensor, labels: Tensor) -> Tensor:
        """Diffusion loss, variational loss if the variance is learned, and λ_IM times the matching loss."""
        t = torch.randint(1, NUM_TRAIN_TIMESTEPS, (len(z0),), device=self._device)
        dropped = torch.rand(len(z0), device=self._device) < LABEL_DROPOUT
        labels = torch.where(dropped, self.dit.null_label, labels)
        eps = torch.randn_like(z0)
        z_t = add_noise(z0, eps, abar=abar_at(self._abar, t))
        output = self._predict(z_t, t, labels)
        predicted = noise_of(output, z0.shape[1])
        loss = losses.diffusion_loss(predicted, eps).mean()
        if output.shape[1] == 2 * z0.shape[1]:
            loss = loss + losses.variational_loss(output, z_t, z0, t, self._abar).mean()
        pair = losses.one_step_pair(self._predict, z0, z_t, predicted, t, labels, self._abar)
        return loss + MATCHING_WEIGHT * losses.all_pairs_loss(*pair).mean()

    def checkpoint(self) -> object:
        """The state that the published code saves: model, average and optimiser."""
        return [part.state_dict() for part in (self.dit, self.ema, self.optimizer)]


class Encoding(Published):
    """Read, decode and encode images one by one."""

    def __init__(self, context: Context):
        super().__init__(context)
        train = context.images["train"]
        self._encoder, self._read = self._vae(), self._reader()
        self._single = list(payloads(train, (np.arange(self.images) % len(train)).tolist(), 1))

    @staticmethod
    def operations(context: Context) -> float:
        return pool_operations(context, "encode")

    @torch.no_grad()
    def __call__(self) -> list[np.ndarray]:
        """Means (1, C, h, w), one per view and image."""
        means: list[np.ndarray] = []
        for payload in self._single:
            pixels, _, _ = self._read(payload)
            for view in (pixels, pixels[..., ::-1].copy())[: self._context.num_views]:
                mean, _ = self._encoder.encode(to_images(torch.from_numpy(view).to(self._device)))
                means.append(mean.cpu().numpy())
        return means


class Inversion(Published):
    """Invert latents one by one."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._predict = broadcast_timestep(predictor(self._dit()))
        self._grid = inversion_grid(context.config.invert.steps)
        self._views = torch.randn(self.images * context.num_views, 1, *context.info.config.latent_shape)

    @staticmethod
    def operations(context: Context) -> float:
        return pool_operations(context, "invert")

    @torch.no_grad()
    def __call__(self) -> list[np.ndarray]:
        """Trajectories (1, S, C, h, w), one per view and image."""
        label = torch.tensor(self._context.model_labels[:1], device=self._device)
        return [
            invert(self._predict, view.to(self._device), label, self._grid, self._abar).cpu().numpy()
            for view in self._views
        ]
