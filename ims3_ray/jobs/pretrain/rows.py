"""The rows that the trainings read: views of images, and latents that the trained VAE has encoded."""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ims3_ray.config.load import override_words
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import BatchReader, Payload
from ims3_ray.errors import InputError
from ims3_ray.models.device import prepare_device, run_padded_batches, to_images
from ims3_ray.storage.artifacts import Directory, fingerprint
from ims3_ray.storage.disk_cache import CachedRows, open_cache
from ims3_ray.storage.rows import memory_bytes, part_names, read_part
from ims3_ray.storage.schemas import LATENT, LATENTS, Column, Columns

if TYPE_CHECKING:
    from .tasks import Models

# per image: posterior of each view, unscaled
VIEWED_LATENTS = {**LATENTS, **dict.fromkeys(("mean", "logvar"), Column("float16", (None, *LATENT)))}

HELD_OUT_SHARE, MAX_HELD_OUT = 0.1, 2000  # of the images
MIN_IMAGES = 5  # per class


def split_images(config: Pretrain, images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """Returns (trained, held-out) images. Raises InputError for too few of a class or for a batch."""
    trained, held_out = hold_out(config, images)
    if smaller := smaller_batches(config, len(trained)):
        words = " ".join(override_words(smaller))
        raise InputError(f"data.train: {len(trained)} images to train on are less than a batch; set {words}")
    return trained, held_out


def hold_out(config: Pretrain, images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """Returns (trained, held-out) images. Raises InputError for too few of a class."""
    for name, count in zip(images.classes, images.counts(), strict=True):
        if count < MIN_IMAGES:
            raise InputError(
                f"data.train: class {name!r} has {count} images, a generator needs {MIN_IMAGES}; add "
                "some, or name the other classes in data.classes"
            )
    if not config.patience:
        return images, None
    return images.split(min(HELD_OUT_SHARE, MAX_HELD_OUT / len(images)))


def smaller_batches(config: Pretrain, count: int) -> dict[str, int]:
    """Batch sizes by field, of the trainings whose batch is larger than `count` images."""
    most = count // config.micro_batches * config.micro_batches
    sections = {"vae": config.vae, "transformer": config.transformer, "extractor": config.extractor}
    return {f"{name}.batch_size": most for name, section in sections.items() if section.batch_size > most}


@dataclass(frozen=True)
class Views:
    """Views of an image that keep its label: itself, mirrored, and shifted by `shift` pixels or 0."""

    mirror: bool
    shift: int

    def __len__(self) -> int:
        return (5 if self.shift else 1) * (2 if self.mirror else 1)

    def view(self, images: Tensor, index: int) -> Tensor:
        """Returns view `index` of all images (B, 3, S, S), pixels reflected at the edges; 0: the image."""
        way, mirrored = divmod(index, 2) if self.mirror else (index, False)
        images, by, side = images.flip(-1) if mirrored else images, self.shift, images.shape[-1]
        if not way:
            return images
        top, left = ((0, by), (2 * by, by), (by, 0), (by, 2 * by))[way - 1]
        return pad(images, (by,) * 4, mode="reflect")[..., top : top + side, left : left + side]

    def draw(self, count: int, rng: torch.Generator) -> np.ndarray:
        """Returns random indices (count,) of views."""
        if len(self) == 1:
            return np.zeros(count, np.int64)
        return torch.randint(len(self), (count,), generator=rng).numpy()

    def random(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Returns a random view of each image (B, 3, S, S)."""
        indices = self.draw(len(images), rng)
        views = [self.view(image[None], index) for image, index in zip(images, indices, strict=True)]
        return torch.cat(views)


@dataclass(frozen=True)
class Latents:
    """The VAE's posteriors of the images in `ids` or, inverted, of all others."""

    directory: Directory
    ids: frozenset[str] = frozenset()
    inverted: bool = True

    def open(self) -> CachedRows:
        names = part_names(self.directory)
        size = memory_bytes(self.directory, names[0]) * len(names)
        return open_cache(fingerprint([self.directory.uri, self.inverted, len(self.ids)]), self.parts, size)

    def parts(self) -> Iterator[Columns]:
        for name in part_names(self.directory):
            part = read_part(self.directory, name, VIEWED_LATENTS)
            keep = np.array([(key in self.ids) != self.inverted for key in part.pop("image_id")], bool)
            yield {column: values[keep] for column, values in part.items()}


class LatentEncoder:
    """Encodes a batch of image files by the trained VAE, in the actors of a pool."""

    def __init__(self, images: Directory, models: "Models", device: str, batch_size: int):
        self._device, self._batch_size, self._views = prepare_device(device), batch_size, models.views
        self._vae = models.trained_vae(1.0, self._device)
        self._read = BatchReader(images, models.config.image_size)

    @torch.inference_mode()
    def __call__(self, payload: Payload) -> tuple[Columns, dict[str, str]]:
        def encode(batch: Tensor) -> list[Tensor]:
            views = [self._views.view(to_images(batch), index) for index in range(len(self._views))]
            return [torch.stack(x, dim=1).half() for x in zip(*map(self._vae.encode, views), strict=True)]

        pixels, columns, bad = self._read(payload)
        columns["mean"], columns["logvar"] = run_padded_batches(
            encode, [pixels], self._batch_size, self._device
        )
        return columns, bad


def scaling_factor(latents: Latents) -> tuple[float, float]:
    """Returns 1 / deviation of the latents (Rombach et al. 2022, appendix G), and the deviation."""
    count, total, squares, own = 0, 0.0, 0.0, 0.0
    for part in latents.parts():
        mean, logvar = (part[name].astype(np.float64) for name in ("mean", "logvar"))
        count, total, squares = count + mean.size, total + mean.sum(), squares + np.square(mean).sum()
        own += np.exp(logvar).sum()
    variance = squares / count - (total / count) ** 2 + own / count
    return round(float(variance**-0.5), 6), float(variance**0.5)


class BlankRows:
    """Images and latents without content, to measure a step."""

    count = 4096

    def __init__(self, models: "Models"):
        side, latent = models.config.image_size, (len(models.views), *models.dit_config.latent_shape)
        self._rows = {"pixels": np.zeros((3, side, side), np.uint8), "label": np.zeros((), np.int64)}
        self._rows |= dict.fromkeys(("mean", "logvar"), np.zeros(latent, np.float16))

    def open(self) -> "BlankRows":
        return self

    def shape(self, column: str) -> tuple[int, ...]:
        return self._rows[column].shape

    def read(self, column: str, rows: Sized, inner: object = None) -> np.ndarray:
        row = self._rows[column]
        return np.stack([row if inner is None else row[0]] * len(rows))

    def close(self) -> None: ...
