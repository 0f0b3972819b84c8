"""The actor of stage refine: holds the probes, φ and, for latents, the VAE; refines one class per call."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from ray.actor import ActorHandle
from torch import Tensor

from ims3_ray.config.settings import Config
from ims3_ray.data.images import Tiles
from ims3_ray.data.loader import BatchReader, Payload
from ims3_ray.data.transforms import decode, encode_png, resize_and_crop, square
from ims3_ray.errors import InputError
from ims3_ray.evaluation.probes import differentiable, probe_protocols
from ims3_ray.method.coverage import became_copies
from ims3_ray.method.packing import cut, enlarge, pack
from ims3_ray.method.refine import Match, NoGradientError, Statistic
from ims3_ray.method.seeding import generator, permutation
from ims3_ray.models.classifiers import Classifier
from ims3_ray.models.device import (
    TRANSFORMER_LOCK,
    Numerics,
    prepare_device,
    strictly_deterministic,
    to_images,
    to_pixels,
)
from ims3_ray.models.extractor import embed_pixels, load_extractor
from ims3_ray.models.generator import load_vae
from ims3_ray.stages.selected import SelectedCandidate, read_images
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import Index
from ims3_ray.storage.schemas import Columns

from .probe import load_probes
from .refinement import Sizes, refinement

ORIGIN = ("label", "place", "subgroup", "index", "seed")
POST_INTERVAL_S = 2.0  # between two progress messages
CHUNK = 128  # real images per pass: on a CPU, larger maps take three times as long, for new memory pages
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
    probes: Directory | None
    candidates: Directory | None
    tiles: Tiles | None  # of a packed set
    image_size: int  # pixels per side at which φ sees an image
    stored_size: int  # pixels per side of an image of the set
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
        model, settings, self._vae = config.model, config.refine, None
        if settings.space == "latent":
            numerics = {"device": device, "dtype": inputs.numerics.dtype}
            self._vae = load_vae(model.path, vae=model.vae, heads=model.heads, **numerics)
            self._vae.model.requires_grad_(False)
        self._extractor = load_extractor(config.embed.extractor, device)
        kinds = probe_protocols(config.probe, config.evaluate.protocol)
        shared = kinds, config.probe, len(inputs.classes), device
        self._kinds, self._probes = kinds, load_probes(inputs.probes, *shared) if inputs.probes else []
        self._inputs, self._board, self._batch_size, self._device = inputs, board, batch_size, device
        self._settings, self._seed = settings, config.seed
        self._rules, self._real_of = differentiable(kinds[0]), -1
        self._packing = Sizes.of(inputs.tiles, inputs.stored_size, self._rules.image_size)
        self._refinement = refinement(settings, self._vae, self._rules, self._packing, batch_size)

    def __call__(self, payload: ClassPayload) -> tuple[Columns, dict[str, str]]:
        label, selected = payload["label"], [SelectedCandidate(*values) for values in payload["selected"]]
        # one class at a time: probes hold hooks and gradients
        with TRANSFORMER_LOCK.on(self._device), strictly_deterministic():
            start = self._start(selected, payload["real"])
            losses, moved = self._refine(label, start, payload["real"])
            embedded = [
                embed_pixels(self._extractor, self._as_generated(pixels), self._batch_size, self._device)
                for pixels in (start, moved)
            ]
        features = self._inputs.features
        real = features.take(np.flatnonzero(features.labels == label)).read()
        restored = became_copies(real, *embedded)
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
        """Return start pixels (K, 3, S, S) uint8: tiles, or at the size of the generator or classifiers."""
        if self._inputs.candidates:
            pngs = read_images(self._inputs.candidates, selected)
        else:
            pngs = [self._inputs.images.read(real["paths"][image.row]) for image in selected]
        if self._settings.space == "pixel" or self._packing.factor > 1:
            return np.stack([resize_and_crop(decode(png), self._packing.tile) for png in pngs])
        return np.stack([square(decode(png), self._inputs.image_size) for png in pngs])

    def _as_generated(self, pixels: np.ndarray) -> np.ndarray:
        """Resize to the size at which φ sees every image; tiles are enlarged as in training."""
        if self._packing.factor > 1:
            pixels = enlarge(torch.from_numpy(pixels), self._rules.image_size).numpy()
        images = (Image.fromarray(image.transpose(1, 2, 0)) for image in pixels)
        return np.stack([square(image, self._inputs.image_size) for image in images])

    def _refine(self, label: int, start: np.ndarray, real: Payload) -> tuple[list[float], np.ndarray]:
        """Return mean losses over parts of the steps, and the refined pixels."""
        pixels = pack(torch.from_numpy(start).to(self._device), self._packing.factor)
        z = self._encode(pixels) if self._vae else pixels.float() / 255
        if count := self._settings.real_batch:
            match = partial(self._batch_match, label, self._real_pixels(label, real), count)
        else:
            match = self._fixed_targets(label, real)
        log = LossLog(self._board, self._refinement.steps)
        try:
            z = self._refinement.run(z, label, match, log)
        except NoGradientError as error:
            raise InputError(
                f"model.path: {error}: this VAE passes no gradient; set refine.space=pixel or refine.steps=0"
            ) from error
        parts = np.array_split(np.array(log.losses), min(NUM_LOSSES, len(log.losses)))
        return [float(part.mean()) for part in parts], self._pixels(z)

    def _fixed_targets(self, label: int, real: Payload) -> Callable[[int], Match]:
        """Return a function that draws a probe per step; a probe has one target.

        Siamese views of a step repeat those of the probe's target (Zhao & Bilen 2021, eq. 3).
        """
        name, is_siamese = self._inputs.classes[label], bool(self._rules.augmentations.siamese)

        @cache
        def target(index: int) -> Statistic:
            key = "refine-target", self._seed, name, index
            pixels = self._real_pixels(label, real)
            return self._measure(label, self._probes[index], pixels, self._settings.real_images, *key)

        def match(step: int) -> Match:
            draws = generator("refine", self._seed, name, step)
            index = int(torch.randint(len(self._probes), (), generator=draws))
            views = generator("refine-target", self._seed, name, index) if is_siamese else draws
            return Match(self._probes[index], target(index), views)

        return match

    def _batch_match(self, label: int, pixels: np.ndarray, count: int, step: int) -> Match:
        """Return a network and `count` real images drawn for this step, in views that the step repeats.

        All classes meet the same network at a step. Without probes it is untrained (Zhao & Bilen 2023).
        """
        network_key = "refine-network", self._seed, step
        key = "refine", self._seed, self._inputs.classes[label], step
        if self._probes:
            index = int(torch.randint(len(self._probes), (), generator=generator(*network_key)))
            network = self._probes[index]
        else:
            rules = self._kinds[step % len(self._kinds)]
            network = rules.build(len(self._inputs.classes), generator(*network_key)).to(self._device).eval()
        target = self._measure(label, network, pixels, count, *key)
        return Match(network, target, generator(*key))

    def _measure(
        self, label: int, network: Classifier, pixels: np.ndarray, count: int | None, *key: int | str
    ) -> Statistic:
        """Return the statistic of `count` of the class's real images, one view each, drawn by `key`."""
        rows = permutation(len(pixels), *key)[:count]
        images = torch.from_numpy(pixels[rows]).to(self._device).float() / 255
        views, measure = self._refinement.view(images, generator(*key)), self._refinement.objective.measure
        parts = views.split(CHUNK)
        measured = [measure(network, part, label, differentiable=False) for part in parts]
        weights = [len(part) / len(views) for part in parts]
        return [
            torch.stack([w * x.detach() for w, x in zip(weights, values, strict=True)]).sum(dim=0)
            for values in zip(*measured, strict=True)
        ]

    def _real_pixels(self, label: int, real: Payload) -> np.ndarray:
        """Return the class's readable training images at the classifiers' size, cached per class."""
        if self._real_of != label:
            read = BatchReader(self._inputs.images, self._rules.image_size, resize_and_crop)
            self._real, self._real_of = read(real)[0], label
        return self._real

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        parts = to_images(enlarge(pixels, self._inputs.image_size)).split(self._batch_size)
        assert self._vae
        return torch.cat([self._vae.encode(part)[0] for part in parts])

    @torch.no_grad()
    def _pixels(self, z: Tensor) -> np.ndarray:
        """Return images, or tiles, (K, 3, S, S) uint8. Raises InputError if a value is not finite."""
        if self._vae is None:
            images = z * 2 - 1
        else:
            parts = (self._vae.decode(part) for part in z.split(self._batch_size))
            images = torch.cat([self._packing.as_stored(part) for part in parts])
        if not bool(torch.isfinite(images).all()):
            raise InputError(f"refine.lr: {self._settings.lr:g} led to pixels that are not finite; lower it")
        return cut(to_pixels(images), self._packing.factor).cpu().numpy()
