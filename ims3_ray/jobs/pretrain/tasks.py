"""The trainings from scratch, of VAE, DiT and extractor φ, for the loop in cluster/trainer.py; their results.

Images are held in memory.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import safetensors.torch
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss

from ims3_ray.config.pretrain import Pretrain, TrainVae
from ims3_ray.data.images import ImageSet
from ims3_ray.data.reading import BatchReader, payloads
from ims3_ray.evaluation.augment import resized_crop
from ims3_ray.method import losses
from ims3_ray.method.ddim import add_noise, level, noise_of
from ims3_ray.method.keys import permutation
from ims3_ray.method.rng import generator
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, alphas_bar
from ims3_ray.models import classifiers
from ims3_ray.models.batches import in_batches, to_images
from ims3_ray.models.classifiers import Classifier
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.vae import Vae
from ims3_ray.storage.artifacts import Directory

VALUES = "values.safetensors"
READ_BATCH = 256
EXTRACTOR_CROP = (0.5, 1.0)  # share of the image that a training crop of φ shows
FREQUENCY_SHIFT = 1  # as diffusers' own DiT, so that the written folder is exact in plain diffusers
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Pixels:
    """A whole image set in memory, as every worker of a pretraining holds it."""

    images: ImageSet
    image_size: int

    def read(self) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, S, S) uint8 and labels (N,) int64, in the set's order."""
        read = BatchReader(self.images.directory, self.image_size)
        parts = [read(payload) for payload in payloads(self.images, range(len(self.images)), READ_BATCH)]
        pixels = torch.cat([torch.from_numpy(p) for p, _, _ in parts])
        return pixels, torch.cat([torch.from_numpy(known["label"]) for _, known, _ in parts])


@dataclass(frozen=True)
class Models:
    """What is trained, before and after: each kind's values lie in a folder of its own."""

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
            norm_eps=1e-5,  # diffusers' default, for the same reason
        )

    def classifier(self, seed: int) -> Classifier:
        """φ's network before training."""
        extractor, draws = self.config.extractor, generator("extractor-weights", seed)
        size = self.num_classes, self.config.image_size
        return classifiers.build(extractor.network, *size, draws, width=extractor.width)

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


class PixelTask:
    """What the trainings share: batches keyed by (seed, epoch), noise keyed by (seed, step, part)."""

    name = ""
    weights: Mapping[str, float] = MappingProxyType({})
    ratios: Mapping[str, float] = MappingProxyType({})
    apart: Collection[str] = ()

    def __init__(self, device: torch.device, pixels: Pixels, batch_size: int, micro_batches: int, seed: int):
        self._pixels, self._labels = pixels.read()
        self._device, self._seed = device, seed
        self._batch_size, self._part_size = batch_size, batch_size // micro_batches

    def model_of(self, model: Model) -> Model:
        """`model` on the device, its parameters those that are trained."""
        model = model.to(self._device).train()
        self.parameters = dict(model.named_parameters())
        return model

    def part(self, step: int, part: int) -> tuple[Tensor, torch.Generator]:
        """Rows of the part, and its generator."""
        size, rows = self._batch_size, len(self._labels)
        per_epoch = max(1, rows // size)
        epoch, batch = divmod(step, per_epoch)
        order = permutation(rows, self.name, self._seed, epoch)
        start = batch * size + part * self._part_size
        return torch.from_numpy(order[start : start + self._part_size]), generator(
            self.name, self._seed, step, part
        )

    def images(self, rows: Tensor) -> Tensor:
        return to_images(self._pixels[rows].to(self._device))

    def share(self, values: Tensor) -> Tensor:
        """This part's share of a mean over the global batch."""
        return values.sum() / self._batch_size

    def after_step(self, step: int, gather: Callable[[Tensor], Tensor]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass

    def save(self, _values: dict[str, Tensor], averages: dict[str, Tensor], out: Directory) -> None:
        out.write(VALUES, safetensors.torch.save({n: v.cpu().contiguous() for n, v in averages.items()}))


class VaeTask(PixelTask):
    name = "vae"

    def __init__(self, device: torch.device, models: Models, **shared: Any):
        super().__init__(device, **shared)
        settings = models.config.vae
        self._vae = self.model_of(build_vae(settings, models.config.image_size, self._seed))
        self.weights = {"reconstruction": 1.0, "kl": settings.kl_weight}

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, draws = self.part(step, part)
        images = self.images(rows)  # (B, 3, S, S)
        posterior = self._vae.encode(images)[0]
        noise = torch.randn(posterior.mean.shape, generator=draws).to(self._device)  # (B, C, H, W)
        latents = posterior.mean + posterior.std * noise
        decoded = self._vae.decode(latents)[0]  # pyright: ignore[reportArgumentType] (B, 3, S, S)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
        return {
            "reconstruction": self.share(l1_loss(decoded, images, reduction="none").flatten(1).mean(1)),
            "kl": self.share(kl.flatten(1).mean(1)),
        }


class TransformerTask(PixelTask):
    name = "transformer"
    weights = MappingProxyType({"diffusion": 1.0, "variational": 1.0})

    def __init__(self, device: torch.device, models: Models, scaling_factor: float, **shared: Any):
        super().__init__(device, **shared)
        encoder = models.trained_vae(scaling_factor, device)
        self._mean, self._logvar = encode_all(encoder, self._pixels, device)
        dit = DiT(models.dit_config).initialize(generator("transformer-weights", self._seed))
        self._dit, self._abar = self.model_of(dit), alphas_bar()
        self._dropout = models.config.transformer.label_dropout

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, draws = self.part(step, part)
        shape = (2, len(rows), *self._mean.shape[1:])
        posterior_noise, eps = torch.randn(shape, generator=draws).to(self._device)  # (B, C, H, W) each
        t = torch.randint(1, NUM_TRAIN_TIMESTEPS, (len(rows),), generator=draws)  # (B,)
        dropped = torch.rand(len(rows), generator=draws) < self._dropout
        labels = self._labels[rows].masked_fill(dropped, self._dit.null_label).to(self._device)
        z0 = self._mean[rows] + (0.5 * self._logvar[rows]).exp() * posterior_noise
        t = t.to(self._device)
        z_t = add_noise(z0, eps, abar=level(self._abar, t))  # (B, C, H, W)
        output = self._dit(z_t, t, labels)  # (B, 2 C, H, W)
        kl = losses.variational_loss(output, z_t, z0, t, self._abar)
        return {
            "diffusion": self.share(losses.diffusion_loss(noise_of(output, z0.shape[1]), eps)),
            "variational": self.share(kl),
        }


class ExtractorTask(PixelTask):
    name = "extractor"
    weights = MappingProxyType({"cross_entropy": 1.0})

    def __init__(self, device: torch.device, models: Models, **shared: Any):
        super().__init__(device, **shared)
        self._network = self.model_of(models.classifier(self._seed))

    def losses(self, step: int, part: int) -> dict[str, Tensor]:
        rows, draws = self.part(step, part)
        images = resized_crop(to_images(self._pixels[rows]), EXTRACTOR_CROP, draws)
        logits = self._network(images.to(self._device))  # (B, classes)
        labels = self._labels[rows].to(self._device)
        return {"cross_entropy": self.share(cross_entropy(logits, labels, reduction="none"))}


def build_vae(settings: TrainVae, image_size: int, seed: int, scaling_factor: float = 1.0) -> AutoencoderKL:
    """The VAE before training; its weights are drawn from `seed`, the global generator stays as it was."""
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
            norm_num_groups=8,
            sample_size=image_size,
            scaling_factor=scaling_factor,
        )


def encode_all(vae: Vae, pixels: Tensor, device: torch.device) -> list[Tensor]:
    """Scaled posterior means and log-variances of all images, on the device."""
    encoded = in_batches(lambda batch: vae.encode(to_images(batch)), [pixels.numpy()], READ_BATCH, device)
    return [torch.from_numpy(x).to(device) for x in encoded]
