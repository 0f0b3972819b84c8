"""Training tasks of VAE, DiT and extractor φ, for the training loop of models/training.py, and their results.

Each task reads its batches from the node's disk: pixels, or latents that the trained VAE has encoded.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
import safetensors.torch
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss

from ims3_ray.config.pretrain import NORM_GROUPS, Pretrain, TrainVae
from ims3_ray.evaluation.augment import flip, resized_crop
from ims3_ray.method import losses
from ims3_ray.method.ddim import abar_at, add_noise, noise_of
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, alphas_bar
from ims3_ray.method.seeding import EpochOrder, generator
from ims3_ray.models import classifiers
from ims3_ray.models.classifiers import Classifier
from ims3_ray.models.device import to_device, to_images
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.vae import Vae
from ims3_ray.storage.artifacts import Directory, read_checked
from ims3_ray.storage.disk_cache import CachedRows

from .rows import Views

VALUES = "values.safetensors"
EXTRACTOR_CROP = (0.5, 1.0)  # share of the image area in a training crop of φ
LABEL_DROPOUT = 0.1  # share of labels replaced by the null label, for classifier-free guidance
SCORED_LEVELS = 4  # noise levels per held-out image
FREQUENCY_SHIFT = 1  # as diffusers' DiT, so that plain diffusers computes the same outputs
Model = TypeVar("Model", bound=nn.Module)


class Rows(Protocol):
    """Training data, opened on each worker."""

    def open(self) -> CachedRows: ...


@dataclass(frozen=True)
class Models:
    """The models, untrained and trained; each one's parameters are in its own folder."""

    config: Pretrain
    num_classes: int
    views: Views
    folders: dict[str, Directory]

    @property
    def dit_config(self) -> DiTConfig:
        vae, transformer = self.config.vae, self.config.transformer
        return DiTConfig(
            sample_size=self.config.image_size // 2 ** (len(vae.channels) - 1),
            hidden_size=transformer.hidden_size,
            depth=transformer.depth,
            num_heads=transformer.heads,
            num_classes=self.num_classes,
            patch_size=transformer.patch_size,
            in_channels=vae.latent_channels,
            out_channels=2 * vae.latent_channels,
            frequency_shift=FREQUENCY_SHIFT,
            norm_eps=1e-5,  # diffusers' default
        )

    def classifier(self, seed: int) -> Classifier:
        """φ before training."""
        extractor, rng = self.config.extractor, generator("extractor-weights", seed)
        size = self.num_classes, self.config.image_size
        return classifiers.build(extractor.network, *size, rng, width=extractor.width)

    def trained_vae(self, scaling_factor: float, device: torch.device) -> Vae:
        image_size = self.config.image_size
        vae = build_vae(self.config.vae, image_size, seed=0, scaling_factor=scaling_factor)
        vae = self._trained(vae, "vae")
        nn.Module.to(vae, device)  # in place
        return Vae(vae, image_size)

    def trained_transformer(self) -> DiT:
        return self._trained(DiT(self.dit_config), "transformer")

    def trained_classifier(self, name: str) -> Classifier:
        return self._trained(self.classifier(0), name)

    def _trained(self, model: Model, name: str) -> Model:
        values = safetensors.torch.load(read_checked(self.folders[name], VALUES))
        model.load_state_dict(values, strict=False)
        return model.eval().requires_grad_(False)


class RowsTask:
    """Base of the tasks. Batches depend on (seed, epoch), noise on (seed, step, micro-batch)."""

    name = score_name = ""
    loss_weights: Mapping[str, float] = MappingProxyType({})
    gradient_ratios: Mapping[str, float] = MappingProxyType({})
    separate_terms: Collection[str] = ()

    def __init__(
        self,
        device: torch.device,
        models: Models,
        rows: Rows,
        held_out: Rows | None,
        micro_batches: int,
        batch_size: int,
        seed: int,
    ):
        self._rows, self._held_out = rows.open(), held_out.open() if held_out else None
        self._order, self._views = EpochOrder(self.name, seed), models.views
        self._device, self._seed, self._micro_batches = device, seed, micro_batches
        self._batch_size, self._part_size = batch_size, batch_size // micro_batches

    def prepare(self, model: Model) -> Model:
        """Moves `model` to the device and registers its parameters for training."""
        model = model.to(self._device).train()
        self.parameters = dict(model.named_parameters())
        return model

    def part(self, step: int, part: int) -> tuple[np.ndarray, torch.Generator]:
        """Returns the rows of a micro-batch and its random generator."""
        batch = self._order.batch(step, self._batch_size, self._rows.count)
        rows = batch[part * self._part_size : (part + 1) * self._part_size]
        return rows, generator(self.name, self._seed, step, part)

    def held_out_losses(self, part: int) -> dict[str, Tensor]:
        """Returns the sum of `score` over every `micro_batches`-th held-out row, over the number of rows."""
        assert self._held_out is not None, "a task without held-out rows is not scored"
        count, step = self._held_out.count, self._micro_batches
        total = torch.zeros((), device=self._device)
        for start in range(part, count, step * self._part_size):
            rows = np.arange(start, min(count, start + step * self._part_size), step)
            rng = generator(self.name, "held out", self._seed, start)
            total += self.score(self._held_out, rows, rng).sum() / count
        return {self.score_name: total}

    def score(self, held_out: CachedRows, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        """Returns the losses (B,) of held-out rows."""
        raise NotImplementedError

    def share(self, values: Tensor) -> Tensor:
        """Returns this micro-batch's share of the mean over the whole batch."""
        return values.sum() / self._batch_size

    def after_step(self, step: int, gather: Callable[[Tensor], Tensor]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        for rows in filter(None, (self._rows, self._held_out)):
            rows.close()

    def save(self, _values: dict[str, Tensor], averages: dict[str, Tensor], out: Directory) -> None:
        out.write(VALUES, safetensors.torch.save({n: v.cpu().contiguous() for n, v in averages.items()}))


def column(source: CachedRows, name: str, rows: np.ndarray, inner: np.ndarray | None = None) -> Tensor:
    """Returns a column's values at the rows, on the CPU."""
    return torch.from_numpy(source.read(name, rows, inner).copy())


class VaeTask(RowsTask):
    name, score_name = "vae", "reconstruction"

    def __init__(self, device: torch.device, models: Models, **shared: Any):
        super().__init__(device, models, **shared)
        settings = models.config.vae
        self._vae = self.prepare(build_vae(settings, models.config.image_size, self._seed))
        self.loss_weights = {"reconstruction": 1.0, "kl": settings.kl_weight}

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, rng = self.part(step, part)
        pixels = to_images(column(self._rows, "pixels", rows))
        images = to_device(self._views.random(pixels, rng), self._device)  # (B, 3, S, S)
        reconstruction, kl = self._terms(images, rng)
        return {"reconstruction": self.share(reconstruction), "kl": self.share(kl)}

    def score(self, held_out: CachedRows, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        images = to_device(to_images(column(held_out, "pixels", rows)), self._device)
        return self._terms(images, rng)[0]

    def _terms(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        posterior = self._vae.encode(images)[0]
        noise = to_device(torch.randn(posterior.mean.shape, generator=rng), self._device)  # (B, C, H, W)
        latents = posterior.mean + posterior.std * noise
        decoded = self._vae.decode(latents)[0]  # pyright: ignore[reportArgumentType] (B, 3, S, S)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
        return l1_loss(decoded, images, reduction="none").flatten(1).mean(1), kl.flatten(1).mean(1)


class TransformerTask(RowsTask):
    name, score_name = "transformer", "diffusion"
    loss_weights = MappingProxyType({"diffusion": 1.0, "variational": 1.0})

    def __init__(self, device: torch.device, models: Models, scaling_factor: float, **shared: Any):
        super().__init__(device, models, **shared)
        self._factor = scaling_factor
        dit = DiT(models.dit_config).initialize(generator("transformer-weights", self._seed))
        self._dit, self._abar = self.prepare(dit), alphas_bar().to(device)
        self._dropout = LABEL_DROPOUT

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, rng = self.part(step, part)
        views = self._views.draw(len(rows), rng)
        noise = torch.randn((2, len(rows), *self._rows.shape("mean")[1:]), generator=rng)
        t = torch.randint(1, NUM_TRAIN_TIMESTEPS, (len(rows),), generator=rng)  # (B,)
        dropped = torch.rand(len(rows), generator=rng) < self._dropout
        labels = column(self._rows, "label", rows).masked_fill(dropped, self._dit.null_label)
        z0, z_t, eps, output = self._denoise(self._rows, rows, views, noise, t, labels)
        kl = losses.variational_loss(output, z_t, z0, t.to(self._device), self._abar)
        return {
            "diffusion": self.share(losses.diffusion_loss(noise_of(output, z0.shape[1]), eps)),
            "variational": self.share(kl),
        }

    def score(self, held_out: CachedRows, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        """Diffusion loss with labels, on levels that are drawn from equal ranges."""
        total, labels = torch.zeros(len(rows), device=self._device), column(held_out, "label", rows)
        for level in range(SCORED_LEVELS):
            noise = torch.randn((2, len(rows), *held_out.shape("mean")[1:]), generator=rng)
            share = (level + torch.rand(len(rows), generator=rng)) / SCORED_LEVELS
            t = 1 + (share * (NUM_TRAIN_TIMESTEPS - 1)).long().clamp_max(NUM_TRAIN_TIMESTEPS - 2)
            z0, _, eps, output = self._denoise(held_out, rows, np.zeros_like(rows), noise, t, labels)
            total += losses.diffusion_loss(noise_of(output, z0.shape[1]), eps) / SCORED_LEVELS
        return total

    def _denoise(
        self,
        source: CachedRows,
        rows: np.ndarray,
        views: np.ndarray,
        noise: Tensor,
        t: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns latents, noisy latents, their noise (B, C, H, W), and the DiT's output (B, 2 C, H, W)."""
        posterior_noise, eps = to_device(noise, self._device)
        t, labels = to_device(t, self._device), to_device(labels, self._device)
        mean, logvar = (
            to_device(column(source, name, rows, views).float(), self._device) for name in ("mean", "logvar")
        )
        z0 = self._factor * (mean + (0.5 * logvar).exp() * posterior_noise)
        z_t = add_noise(z0, eps, abar=abar_at(self._abar, t))
        return z0, z_t, eps, self._dit(z_t, t, labels)


class ExtractorTask(RowsTask):
    name, score_name = "extractor", "error"
    loss_weights = MappingProxyType({"cross_entropy": 1.0})

    def __init__(self, device: torch.device, models: Models, **shared: Any):
        super().__init__(device, models, **shared)
        self._network = self.prepare(models.classifier(self._seed))

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, rng = self.part(step, part)
        images = resized_crop(to_images(column(self._rows, "pixels", rows)), EXTRACTOR_CROP, rng)
        images = flip(images, 0.5, rng) if self._views.mirror else images
        logits = self._network(to_device(images, self._device))  # (B, classes)
        labels = to_device(column(self._rows, "label", rows), self._device)
        return {"cross_entropy": self.share(cross_entropy(logits, labels, reduction="none"))}

    def score(self, held_out: CachedRows, rows: np.ndarray, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        images = to_device(to_images(column(held_out, "pixels", rows)), self._device)
        labels = to_device(column(held_out, "label", rows), self._device)
        return (self._network(images).argmax(1) != labels).float()


def build_vae(settings: TrainVae, image_size: int, seed: int, scaling_factor: float = 1.0) -> AutoencoderKL:
    """Returns the VAE before training, initialised from `seed`. The global random state is unchanged."""
    depth = len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("vae-weights", seed).initial_seed())
        return AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * depth,  # pyright: ignore[reportArgumentType] tuples of any length
            up_block_types=("UpDecoderBlock2D",) * depth,  # pyright: ignore[reportArgumentType]
            block_out_channels=settings.channels,  # pyright: ignore[reportArgumentType]
            layers_per_block=1,
            latent_channels=settings.latent_channels,
            norm_num_groups=NORM_GROUPS,
            sample_size=image_size,
            scaling_factor=scaling_factor,
        )
