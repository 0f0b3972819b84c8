"""Training tasks of VAE, DiT and extractor φ, for the training loop of models/training.py, and their results.

Each task reads its batches from the node's disk: pixels, or latents that the trained VAE has encoded.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
import safetensors.torch
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss

from ims3_ray.config.settings import NORM_GROUPS, Pretrain, TrainVae
from ims3_ray.data.loader import BatchReader, Payload
from ims3_ray.evaluation.augment import resized_crop
from ims3_ray.method import losses
from ims3_ray.method.ddim import abar_at, add_noise, noise_of
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, alphas_bar
from ims3_ray.method.seeding import EpochOrder, generator
from ims3_ray.models import classifiers
from ims3_ray.models.classifiers import Classifier
from ims3_ray.models.device import prepare_device, run_padded_batches, to_device, to_images
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.vae import Vae
from ims3_ray.storage.artifacts import Directory, fingerprint
from ims3_ray.storage.disk_cache import CachedRows, open_cache
from ims3_ray.storage.rows import memory_bytes, part_names, read_part
from ims3_ray.storage.schemas import LATENTS, Columns

VALUES = "values.safetensors"
READ_BATCH = 256
EXTRACTOR_CROP = (0.5, 1.0)  # share of the image area in a training crop of φ
LABEL_DROPOUT = 0.1  # share of labels replaced by the null label, for classifier-free guidance
FREQUENCY_SHIFT = 1  # as diffusers' DiT, so that plain diffusers computes the same outputs
Model = TypeVar("Model", bound=nn.Module)


class Rows(Protocol):
    """Training data, opened on each worker."""

    def open(self) -> CachedRows: ...


@dataclass(frozen=True)
class Latents:
    """The VAE's posteriors of all images, unscaled: `mean` and `logvar` (C, h, w) float16, and `label`."""

    directory: Directory

    def open(self) -> CachedRows:
        names = part_names(self.directory)
        size = memory_bytes(self.directory, names[0]) * len(names)
        return open_cache(fingerprint([self.directory.uri]), self.parts, size)

    def parts(self) -> Iterator[Columns]:
        for name in part_names(self.directory):
            yield read_part(self.directory, name, LATENTS, ["label", "mean", "logvar"])


class LatentEncoder:
    """Encodes a batch of image files by the trained VAE, in the actors of a pool."""

    def __init__(self, images: Directory, models: "Models", device: str, batch_size: int):
        self._device, self._batch_size = prepare_device(device), batch_size
        self._vae = models.trained_vae(1.0, self._device)
        self._read = BatchReader(images, models.config.image_size)

    @torch.inference_mode()
    def __call__(self, payload: Payload) -> tuple[Columns, dict[str, str]]:
        def encode(batch: Tensor) -> list[Tensor]:
            return [x.half() for x in self._vae.encode(to_images(batch))]

        pixels, columns, bad = self._read(payload)
        columns["mean"], columns["logvar"] = run_padded_batches(
            encode, [pixels], self._batch_size, self._device
        )
        return columns, bad


@dataclass(frozen=True)
class Models:
    """The models, untrained and trained; each one's parameters are in its own folder."""

    config: Pretrain
    num_classes: int
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
        model.load_state_dict(safetensors.torch.load(self.folders[name].read(VALUES)), strict=False)
        return model.eval().requires_grad_(False)


class RowsTask:
    """Base of the tasks. Batches depend on (seed, epoch), noise on (seed, step, micro-batch)."""

    name = ""
    loss_weights: Mapping[str, float] = MappingProxyType({})
    gradient_ratios: Mapping[str, float] = MappingProxyType({})
    separate_terms: Collection[str] = ()

    def __init__(self, device: torch.device, rows: Rows, batch_size: int, micro_batches: int, seed: int):
        self._rows, self._order = rows.open(), EpochOrder(self.name, seed)
        self._device, self._seed = device, seed
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

    def column(self, name: str, rows: np.ndarray) -> Tensor:
        """Returns a column's values at the rows, on the CPU."""
        return torch.from_numpy(self._rows.read(name, rows).copy())

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
        self._rows.close()

    def save(self, _values: dict[str, Tensor], averages: dict[str, Tensor], out: Directory) -> None:
        out.write(VALUES, safetensors.torch.save({n: v.cpu().contiguous() for n, v in averages.items()}))


class VaeTask(RowsTask):
    name = "vae"

    def __init__(self, device: torch.device, models: Models, **shared: Any):
        super().__init__(device, **shared)
        settings = models.config.vae
        self._vae = self.prepare(build_vae(settings, models.config.image_size, self._seed))
        self.loss_weights = {"reconstruction": 1.0, "kl": settings.kl_weight}

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, rng = self.part(step, part)
        images = to_images(to_device(self.column("pixels", rows), self._device))  # (B, 3, S, S)
        posterior = self._vae.encode(images)[0]
        noise = to_device(torch.randn(posterior.mean.shape, generator=rng), self._device)  # (B, C, H, W)
        latents = posterior.mean + posterior.std * noise
        decoded = self._vae.decode(latents)[0]  # pyright: ignore[reportArgumentType] (B, 3, S, S)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
        return {
            "reconstruction": self.share(l1_loss(decoded, images, reduction="none").flatten(1).mean(1)),
            "kl": self.share(kl.flatten(1).mean(1)),
        }


class TransformerTask(RowsTask):
    name = "transformer"
    loss_weights = MappingProxyType({"diffusion": 1.0, "variational": 1.0})

    def __init__(self, device: torch.device, models: Models, scaling_factor: float, **shared: Any):
        super().__init__(device, **shared)
        self._factor = scaling_factor
        dit = DiT(models.dit_config).initialize(generator("transformer-weights", self._seed))
        self._dit, self._abar = self.prepare(dit), alphas_bar().to(device)
        self._dropout = LABEL_DROPOUT

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, rng = self.part(step, part)
        shape = (2, len(rows), *self._rows.shape("mean"))
        posterior_noise, eps = to_device(torch.randn(shape, generator=rng), self._device)  # (B, C, H, W) each
        t = torch.randint(1, NUM_TRAIN_TIMESTEPS, (len(rows),), generator=rng)  # (B,)
        dropped = torch.rand(len(rows), generator=rng) < self._dropout
        labels = self.column("label", rows).masked_fill(dropped, self._dit.null_label)
        t, labels = to_device(t, self._device), to_device(labels, self._device)
        mean, logvar = (
            to_device(self.column(name, rows).float(), self._device) for name in ("mean", "logvar")
        )
        z0 = self._factor * (mean + (0.5 * logvar).exp() * posterior_noise)
        z_t = add_noise(z0, eps, abar=abar_at(self._abar, t))  # (B, C, H, W)
        output = self._dit(z_t, t, labels)  # (B, 2 C, H, W)
        kl = losses.variational_loss(output, z_t, z0, t, self._abar)
        return {
            "diffusion": self.share(losses.diffusion_loss(noise_of(output, z0.shape[1]), eps)),
            "variational": self.share(kl),
        }


class ExtractorTask(RowsTask):
    name = "extractor"
    loss_weights = MappingProxyType({"cross_entropy": 1.0})

    def __init__(self, device: torch.device, models: Models, **shared: Any):
        super().__init__(device, **shared)
        self._network = self.prepare(models.classifier(self._seed))

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, rng = self.part(step, part)
        images = resized_crop(to_images(self.column("pixels", rows)), EXTRACTOR_CROP, rng)
        logits = self._network(to_device(images, self._device))  # (B, classes)
        labels = to_device(self.column("label", rows), self._device)
        return {"cross_entropy": self.share(cross_entropy(logits, labels, reduction="none"))}


def build_vae(settings: TrainVae, image_size: int, seed: int, scaling_factor: float = 1.0) -> AutoencoderKL:
    """Returns the VAE before training, initialised from `seed`. The global random state is unchanged."""
    depth = len(settings.channels)
    with torch.random.fork_rng():
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
