"""The actor of stage refine: holds the VAE, the probes and φ, and refines one class per call."""

import time
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from ray.actor import ActorHandle
from torch import Tensor
from torch.nn import functional

from ims3_ray.config.evaluation import Refine
from ims3_ray.config.settings import Config
from ims3_ray.data.loader import BatchReader, Payload
from ims3_ray.data.transforms import decode, encode_png, resize_and_crop, square
from ims3_ray.errors import InputError
from ims3_ray.evaluation.augment import view
from ims3_ray.evaluation.probes import differentiable, probe_protocols
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.method.coverage import find_copies
from ims3_ray.method.refine import OBJECTIVES, Refinement, Statistic
from ims3_ray.method.seeding import generator, permutation
from ims3_ray.models.device import TRANSFORMER_LOCK, Numerics, prepare_device, to_images, to_pixels
from ims3_ray.models.extractor import embed_pixels, load_extractor
from ims3_ray.models.generator import load_vae
from ims3_ray.models.vae import Vae
from ims3_ray.stages.selected import SelectedCandidate, read_images
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import Index
from ims3_ray.storage.schemas import Columns

from .probe import load_probes

ORIGIN = ("label", "place", "subgroup", "index", "seed")
POST_INTERVAL_S = 2.0  # between two progress messages
NUM_LOSSES = 20  # per class: means over equal parts of the steps


class ClassPayload(TypedDict):
    """A class as plain data, which JSON holds: its training images and the images to refine."""

    label: int
    real: Payload
    selected: list[tuple[Any, ...]]  # of SelectedCandidate; with start=medoids, `row` indexes `real`


@dataclass(frozen=True, kw_only=True)
class RefineInput:
    """The run's configuration, and the artefacts to read."""

    config: Config
    classes: tuple[str, ...]
    numerics: Numerics
    images: Directory
    probes: Directory
    candidates: Directory | None
    features: Index  # of the real images


class LossLog:
    """Collects the loss of each step of a class, and posts the number of new steps every few seconds."""

    def __init__(self, board: ActorHandle, steps: int):
        self.losses: list[float] = []
        self._board, self._steps, self._posted, self._posted_at = board, steps, 0, time.monotonic()

    def __call__(self, loss: float) -> None:
        self.losses.append(loss)
        done = len(self.losses)
        if done == self._steps or time.monotonic() - self._posted_at > POST_INTERVAL_S:
            self._board.report.remote({"step": done - self._posted, "metrics": {"loss": loss}})
            self._posted, self._posted_at = done, time.monotonic()


class Refiner:
    """Refines the images of one class per call, and posts its progress to the board."""

    def __init__(self, inputs: RefineInput, board: ActorHandle, batch_size: int):
        config, device = inputs.config, prepare_device(inputs.numerics.device)
        model, settings = config.model, config.refine
        numerics = {"device": device, "dtype": inputs.numerics.dtype}
        self._vae = load_vae(model.path, vae=model.vae, heads=model.heads, **numerics)
        self._vae.model.requires_grad_(False)
        self._extractor = load_extractor(config.embed.extractor, device)
        kinds = probe_protocols(config.probe, config.evaluate.protocol)
        self._probes = load_probes(inputs.probes, kinds, config.probe, len(inputs.classes), device)
        self._inputs, self._board, self._batch_size, self._device = inputs, board, batch_size, device
        self._settings, self._seed = settings, config.seed
        self._rules, self._real_of = differentiable(kinds[0]), -1
        self._refinement = refinement(settings, self._vae, self._rules, batch_size)

    def __call__(self, payload: ClassPayload) -> tuple[Columns, dict[str, str]]:
        label, selected = payload["label"], [SelectedCandidate(*values) for values in payload["selected"]]
        with TRANSFORMER_LOCK.on(self._device):  # one class at a time: probes hold hooks and gradients
            start = self._start(selected, payload["real"])
            losses, moved = self._refine(label, start, payload["real"])
            embedded = [
                embed_pixels(self._extractor, self._as_generated(pixels), self._batch_size, self._device)
                for pixels in (start, moved)
            ]
        restored = self._became_copies(label, *embedded)
        pngs = [[encode_png(image) for image in pixels] for pixels in (start, moved)]
        columns: Columns = {
            name: np.array([getattr(image, name) for image in selected], np.int64) for name in ORIGIN
        }
        columns |= {
            "image": np.array([pngs[0 if back else 1][row] for row, back in enumerate(restored)], object),
            "feature": np.where(restored[:, None], *embedded),
            "start": np.array(pngs[0], object),
            "start_feature": embedded[0],
            "kept": restored,
            "loss": np.tile(np.array(losses, np.float32), (len(selected), 1)),
        }
        return columns, {}

    def _start(self, selected: list[SelectedCandidate], real: Payload) -> np.ndarray:
        """Return start pixels (K, 3, S, S) uint8, at the size of the generator or of the classifiers."""
        if self._inputs.candidates:
            pngs = read_images(self._inputs.candidates, selected)
        else:
            pngs = [self._inputs.images.read(real["paths"][image.row]) for image in selected]
        if self._settings.space == "pixel":
            return np.stack([resize_and_crop(decode(png), self._rules.image_size) for png in pngs])
        return np.stack([square(decode(png), self._vae.image_size) for png in pngs])

    def _as_generated(self, pixels: np.ndarray) -> np.ndarray:
        """Resize to the generator's size, at which φ sees every image."""
        images = (Image.fromarray(image.transpose(1, 2, 0)) for image in pixels)
        return np.stack([square(image, self._vae.image_size) for image in images])

    def _refine(self, label: int, start: np.ndarray, real: Payload) -> tuple[list[float], np.ndarray]:
        """Return mean losses over parts of the steps, and the refined pixels."""
        pixels = torch.from_numpy(start).to(self._device)
        z = self._encode(pixels) if self._settings.space == "latent" else pixels.float() / 255
        key = "refine", self._seed, self._inputs.classes[label]
        target = cache(partial(self._target, label, real))
        siamese = partial(generator, *self._target_key(label)) if self._rules.augmentations.siamese else None
        log = LossLog(self._board, self._refinement.steps)
        try:
            z = self._refinement.run(z, label, self._probes, target, partial(generator, *key), log, siamese)
        except ValueError as error:
            raise InputError(
                f"model.path: {error}: this VAE passes no gradient; set refine.space=pixel or refine.steps=0"
            ) from error
        parts = np.array_split(np.array(log.losses), min(NUM_LOSSES, len(log.losses)))
        return [float(part.mean()) for part in parts], self._pixels(z)

    def _target(self, label: int, real: Payload, place: int) -> Statistic:
        """Return the statistic of the class's real images, one view each, by the probe at `place`."""
        key = *self._target_key(label), place
        pixels = self._real_pixels(label, real)
        rows = permutation(len(pixels), *key)[: self._settings.real_images]
        images = torch.from_numpy(pixels[rows]).to(self._device).float() / 255
        views = self._refinement.view(images, generator(*key))
        measure = self._refinement.objective.measure
        return [x.detach() for x in measure(self._probes[place], views, label, differentiable=False)]

    def _target_key(self, label: int) -> tuple[str, int, str]:
        return "refine-target", self._seed, self._inputs.classes[label]

    def _real_pixels(self, label: int, real: Payload) -> np.ndarray:
        """Return the class's readable training images at the classifiers' size, cached per class."""
        if self._real_of != label:
            read = BatchReader(self._inputs.images, self._rules.image_size, resize_and_crop)
            self._real, self._real_of = read(real)[0], label
        return self._real

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        parts = to_images(pixels).split(self._batch_size)
        return torch.cat([self._vae.encode(part)[0] for part in parts])

    @torch.no_grad()
    def _pixels(self, z: Tensor) -> np.ndarray:
        """Return images (K, 3, S, S) uint8. Raises InputError if a value is not finite."""
        if self._settings.space == "pixel":
            images = z * 2 - 1
        else:
            images = torch.cat([self._vae.decode(part) for part in z.split(self._batch_size)])
        if not bool(torch.isfinite(images).all()):
            raise InputError(f"refine.lr: {self._settings.lr:g} led to pixels that are not finite; lower it")
        return to_pixels(images).cpu().numpy()

    def _became_copies(self, label: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Tell which images (K,) became copies of real ones by refinement."""
        features = self._inputs.features
        real = features.take(np.flatnonzero(features.labels == label)).read()
        if len(real) < 2:
            return np.zeros(len(after), bool)
        return find_copies(real, after)[1] & ~find_copies(real, before)[1]


def refinement(settings: Refine, vae: Vae, rules: Protocol, part: int) -> Refinement:
    """Return the recipe's Refinement for the classifiers of a protocol; `part` images are decoded at once."""
    resize = partial(_at_size, size=rules.image_size)
    return Refinement(
        objective=OBJECTIVES[settings.objective],
        decode=(lambda z: resize((vae.decode_unclamped(z) + 1) / 2))
        if settings.space == "latent"
        else resize,
        view=partial(_view, rules=rules),
        steps=settings.steps,
        lr=settings.lr,
        views=views_of(settings, rules),
        anchor_weight=settings.anchor_weight,
        chunk=part,
    )


def views_of(settings: Refine, rules: Protocol) -> int:
    """Return views per image and step; siamese augmentation has one, that of the target."""
    return 1 if rules.augmentations.siamese else settings.views


def _at_size(images: Tensor, size: int) -> Tensor:
    """Scale images (K, 3, H, H) as a protocol does, differentiably."""
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _view(images: Tensor, generator: torch.Generator, rules: Protocol) -> Tensor:
    return view(images, rules, generator, siamese=True)
