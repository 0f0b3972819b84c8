"""The actor that refines: it holds the VAE, the probes and φ, and takes a class at a time."""

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
POST_S = 2.0  # between two words on how far a class has come
LOSSES = 20  # that are kept of a class: means over as many parts of the steps


class ClassPayload(TypedDict):
    """A class as plain data: the training images, and what is refined."""

    label: int
    real: Payload
    chosen: list[tuple[Any, ...]]  # of SelectedCandidate; with start=medoids, `row` indexes `real`


@dataclass(frozen=True, kw_only=True)
class Given:
    """The run's configuration, and where lies what is read."""

    config: Config
    classes: tuple[str, ...]
    numerics: Numerics
    images: Directory
    probes: Directory
    candidates: Directory | None
    features: Index  # of the real images


class LossLog:
    """The losses of a class's steps; every few seconds the board is told how many there were."""

    def __init__(self, board: ActorHandle, steps: int):
        self.losses: list[float] = []
        self._board, self._steps, self._told, self._when = board, steps, 0, time.monotonic()

    def __call__(self, loss: float) -> None:
        self.losses.append(loss)
        done = len(self.losses)
        if done == self._steps or time.monotonic() - self._when > POST_S:
            self._board.report.remote({"step": done - self._told, "metrics": {"loss": loss}})
            self._told, self._when = done, time.monotonic()


class Refiner:
    """A class → its images, refined. How far it has come is posted to the board."""

    def __init__(self, given: Given, board: ActorHandle, batch_size: int):
        config, device = given.config, prepare_device(given.numerics.device)
        model, settings = config.model, config.refine
        numerics = {"device": device, "dtype": given.numerics.dtype}
        self._vae = load_vae(model.path, vae=model.vae, heads=model.heads, **numerics)
        self._vae.model.requires_grad_(False)
        self._extractor = load_extractor(config.embed.extractor, device)
        kinds = probe_protocols(config.probe, config.evaluate.protocol)
        self._probes = load_probes(given.probes, kinds, config.probe, len(given.classes), device)
        self._given, self._board, self._batch_size, self._device = given, board, batch_size, device
        self._rules, self._real_of = differentiable(kinds[0]), -1
        self._refinement = refinement(settings, self._vae, self._rules, batch_size)

    def __call__(self, payload: ClassPayload) -> tuple[Columns, dict[str, str]]:
        label, chosen = payload["label"], [SelectedCandidate(*values) for values in payload["chosen"]]
        with TRANSFORMER_LOCK.on(
            self._device
        ):  # hooks and gradients are the probes' own: one class at a time
            start = self._start(chosen, payload["real"])
            losses, moved = self._refine(label, start, payload["real"])
            embedded = [
                embed_pixels(self._extractor, self._as_generated(pixels), self._batch_size, self._device)
                for pixels in (start, moved)
            ]
        kept = self._became_copies(label, *embedded)
        pngs = [[encode_png(image) for image in pixels] for pixels in (start, moved)]
        columns: Columns = {
            name: np.array([getattr(image, name) for image in chosen], np.int64) for name in ORIGIN
        }
        columns |= {
            "image": np.array([pngs[0 if stays else 1][row] for row, stays in enumerate(kept)], object),
            "feature": np.where(kept[:, None], *embedded),
            "start": np.array(pngs[0], object),
            "start_feature": embedded[0],
            "kept": kept,
            "loss": np.tile(np.array(losses, np.float32), (len(chosen), 1)),
        }
        return columns, {}

    def _start(self, chosen: list[SelectedCandidate], real: Payload) -> np.ndarray:
        """Pixels (K, 3, S, S) uint8 of what is refined: at the generator's size, or at the classifiers'."""
        if self._given.candidates:
            pngs = read_images(self._given.candidates, chosen)
        else:
            pngs = [self._given.images.read(real["paths"][image.row]) for image in chosen]
        if self._given.config.refine.space == "pixel":
            return np.stack([resize_and_crop(decode(png), self._rules.image_size) for png in pngs])
        return np.stack([square(decode(png), self._vae.image_size) for png in pngs])

    def _as_generated(self, pixels: np.ndarray) -> np.ndarray:
        """At the generator's size, as φ sees every image."""
        images = (Image.fromarray(image.transpose(1, 2, 0)) for image in pixels)
        return np.stack([square(image, self._vae.image_size) for image in images])

    def _refine(self, label: int, start: np.ndarray, real: Payload) -> tuple[list[float], np.ndarray]:
        """Mean losses over parts of the steps, and the pixels that came of it."""
        pixels = torch.from_numpy(start).to(self._device)
        z = self._encode(pixels) if self._given.config.refine.space == "latent" else pixels.float() / 255
        key = "refine", self._given.config.seed, self._given.classes[label]
        target = cache(partial(self._target, label, real))
        draws = partial(generator, *key)
        siamese = partial(generator, *self._target_key(label)) if self._rules.augmentations.siamese else None
        heard = LossLog(self._board, self._refinement.steps)
        try:
            z = self._refinement.run(z, label, self._probes, target, draws, heard, siamese)
        except ValueError as error:
            raise InputError(
                f"model.path: {error}: its VAE can't be refined through; take refine.space=pixel or steps=0"
            ) from error
        parts = np.array_split(np.array(heard.losses), min(LOSSES, len(heard.losses)))
        return [float(part.mean()) for part in parts], self._pixels(z)

    def _target(self, label: int, real: Payload, place: int) -> Statistic:
        """The statistic of the class's real images, one view of each, by the probe at `place`."""
        key = *self._target_key(label), place
        pixels = self._real_pixels(label, real)
        rows = permutation(len(pixels), *key)[: self._given.config.refine.real_images]
        images = torch.from_numpy(pixels[rows]).to(self._device).float() / 255
        views = self._refinement.view(images, generator(*key))
        probe = self._probes[place]
        return [
            x.detach() for x in self._refinement.objective.measure(probe, views, label, differentiable=False)
        ]

    def _target_key(self, label: int) -> tuple[str, int, str]:
        return "refine-target", self._given.config.seed, self._given.classes[label]

    def _real_pixels(self, label: int, real: Payload) -> np.ndarray:
        """The class's readable training images as classifiers see them; read once for a class."""
        if self._real_of != label:
            read = BatchReader(self._given.images, self._rules.image_size, resize_and_crop)
            self._real, self._real_of = read(real)[0], label
        return self._real

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        parts = to_images(pixels).split(self._batch_size)
        return torch.cat([self._vae.encode(part)[0] for part in parts])

    @torch.no_grad()
    def _pixels(self, z: Tensor) -> np.ndarray:
        """Images (K, 3, S, S) uint8."""
        if self._given.config.refine.space == "pixel":
            images = z * 2 - 1
        else:
            images = torch.cat([self._vae.decode(part) for part in z.split(self._batch_size)])
        if not bool(torch.isfinite(images).all()):
            raise InputError(
                f"refine.lr: {self._given.config.refine.lr:g} led to images that are no numbers; lower it"
            )
        return to_pixels(images).cpu().numpy()

    def _became_copies(self, label: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Which images (K,) bool are copies of real ones after refinement and were none before."""
        features = self._given.features
        real = features.take(np.flatnonzero(features.labels == label)).read()
        if len(real) < 2:
            return np.zeros(len(after), bool)
        return find_copies(real, after)[1] & ~find_copies(real, before)[1]


def refinement(settings: Refine, vae: Vae, rules: Protocol, part: int) -> Refinement:
    """How the recipe moves images that a protocol's classifiers see, `part` of them decoded at once."""
    see = partial(_at_size, size=rules.image_size)
    return Refinement(
        objective=OBJECTIVES[settings.objective],
        decode=(lambda z: see((vae.decode_unclamped(z) + 1) / 2)) if settings.space == "latent" else see,
        view=partial(_view, rules=rules),
        steps=settings.steps,
        lr=settings.lr,
        views=views_of(settings, rules),
        anchor_weight=settings.anchor_weight,
        chunk=part,
    )


def views_of(settings: Refine, rules: Protocol) -> int:
    """Views of every image a step: of siamese augmentation the one in which the target was measured."""
    return 1 if rules.augmentations.siamese else settings.views


def _at_size(images: Tensor, size: int) -> Tensor:
    """Images (K, 3, H, H) as a protocol scales them, differentiably."""
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _view(images: Tensor, generator: torch.Generator, rules: Protocol) -> Tensor:
    return view(images, rules, generator, siamese=True)
