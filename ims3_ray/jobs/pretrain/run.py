"""Train a generator (VAE, then DiT) and an extractor φ on class folders, and write them as one model folder.

Reads images; makes a diffusers pipeline folder with `extractor/` and a model card. Run again, it goes on
where it was.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import ray
import torch

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.cluster.resources import Machine
from ims3_ray.cluster.train import Training, train
from ims3_ray.config.settings import Pretrain, TrainExtractor, TrainTransformer, TrainVae
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import LocalPixels, payloads
from ims3_ray.errors import InputError
from ims3_ray.models import classifiers
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.extractor import save_extractor
from ims3_ray.models.training import TrainingConfig
from ims3_ray.progress import timed
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory, complete, fingerprint, read_manifest
from ims3_ray.storage.checksums import content_hash
from ims3_ray.storage.integrity import read_or_reopen
from ims3_ray.storage.lease import exclusive

from .model_card import agreement, model_card
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

SECOND_SEED = 1  # added to the seed of the classifier that judges samples
EMA_DECAY = 0.999
LEARNING_RATE = 1e-3  # of VAE and extractor
LOG_EVERY = 100  # steps


class Pretraining:
    """All trainings. What each leaves is fingerprinted by what it depends on, and found by later runs."""

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
            "judge": fingerprint([shared, extractor, machine.device, SECOND_SEED]),
        }
        folders = {name: storage / "pretrain" / name / key for name, key in keys.items()}
        self.models = Models(config, len(images.classes), folders)

    def states(self) -> list[str]:
        """A line for each thing that is made: complete, how far it has come, or that it would be made."""
        lines, folders = [], self.models.folders
        for name, section in self._sections.items():
            done = 0
            for file in (self.storage / "checkpoints" / _name(name, folders[name])).files():
                step = re.match(r"step_(\d+)/", file)
                done = max(done, int(step[1]) if step else 0)
            state = f"step {done:,}" if done else "would run"
            state = "complete" if folders[name].exists(VALUES) else state
            lines.append(f"  {name:<12}{state:<12} of {section.steps:,} steps   {folders[name].uri}")
        made = "complete" if read_manifest(folders["latents"]) else "would run"
        lines.insert(
            1, f"  {'latents':<12}{made:<12} of {len(self.images):,} images  {folders['latents'].uri}"
        )
        return lines

    @property
    def _sections(self) -> dict[str, TrainVae | TrainTransformer | TrainExtractor]:
        config = self.config
        sections = {"vae": config.vae, "transformer": config.transformer}
        return sections | {"extractor": config.extractor, "judge": config.extractor}

    def run(self, out: Path) -> dict[str, float]:
        """Train, measure, and write the model folder to `out`, a local path. Gives the card's figures."""
        config, seed = self.config, self.config.seed
        pixels = LocalPixels(self.images, config.image_size)
        self._train("vae", VaeTask, config.vae, pixels, seed)
        latents = self._encode()
        factor, spread = scaling_factor(latents)
        self._train("transformer", TransformerTask, config.transformer, latents, seed, scaling_factor=factor)
        self._train("extractor", ExtractorTask, config.extractor, pixels, seed)
        self._train("judge", ExtractorTask, config.extractor, pixels, seed + SECOND_SEED)
        figures = {"scaling_factor": factor, "latent_deviation": spread, **self._check(factor)}
        self._write(out, factor, figures)
        return figures

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
        parts = {"batch_size": section.batch_size, "micro_batches": config.micro_batches}
        optimisation = TrainingConfig(
            steps=section.steps,
            batch_size=section.batch_size,
            micro_batches=config.micro_batches,
            lr=section.lr if isinstance(section, TrainTransformer) else LEARNING_RATE,
            warmup_steps=min(100, section.steps // 10),
            decay="cosine",
            ema_decay=EMA_DECAY,
            log_every=LOG_EVERY,
            checkpoint_every=config.checkpoint_every,
        )
        training = Training(
            name=_name(name, out),
            build=task,
            arguments={"models": self.models, "rows": rows, "seed": seed, **parts, **arguments},
            optimisation=optimisation,
            out=out,
            checkpoints=self.storage / "checkpoints",
            batch_field=f"{task.name}.batch_size",
        )
        with exclusive(out):
            if not out.exists(VALUES):
                train(training, self.machine, name)

    def _encode(self) -> Latents:
        """The latents of all images by the trained VAE, made once."""
        out, images = self.models.folders["latents"], self.images
        with exclusive(out):
            if read_or_reopen(out) is not None:
                return Latents(out)
            read = payloads(images, range(len(images)), READ_BATCH)
            given = {"images": images.directory, "models": self.models}
            made = fan_out(
                LatentEncoder,
                given | {"device": self.machine.device, "batch_size": READ_BATCH},
                [Part(i, len(payload["paths"]), payload) for i, payload in enumerate(read)],
                table=schemas.LATENTS,
                out=out,
                machine=self.machine,
                stage="encode",
            )
            complete(out, made | {"stage": "encode", "fingerprint": out.name})
        return Latents(out)

    def _check(self, factor: float) -> dict[str, float]:
        """How often a second classifier, trained with another seed, agrees with the label of a sample."""
        if not self.config.check_images:
            return {}
        remote = ray.remote(**self.machine.actor_resources)(agreement).remote
        with timed("agreement"):
            share = ray.get(remote(self.models, factor, self.machine.device))
        return {"agreement": share, "agreement_images": self.config.check_images}

    def _write(self, out: Path, factor: float, figures: dict[str, float]) -> None:
        vae, classes = self.models.trained_vae(factor, torch.device("cpu")).model, list(self.images.classes)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            folder = Path(temporary) / out.name
            dit = self.models.trained_transformer()
            save_pipeline(dit, vae, folder, id2label=classes, dtype=torch.float16)
            half = (0.5, 0.5, 0.5)
            classifier = self.models.trained_classifier("extractor")
            save_extractor(classifier, folder / "extractor", mean=half, deviation=half)
            (folder / "README.md").write_text(model_card(self.config, self.images, figures))
            put(folder, out, self.storage)


def put(folder: Path, out: Path, storage: Directory) -> None:
    """Give a model folder its name; where another driver was quicker, its own serves if it is the same.

    InputError if it is not. `storage` remembers what folders hold.
    """
    try:
        folder.replace(out)
    except OSError:
        if not out.exists():
            raise
        if content_hash(folder, storage) != content_hash(out, storage):
            raise InputError(
                f"--out: {out} was made meanwhile and holds another model; name a new folder"
            ) from None


def check_network(config: Pretrain, num_classes: int) -> None:
    """InputError where φ's network is too deep for the images."""
    try:
        classifiers.build(config.extractor.network, num_classes, config.image_size, None, width=1)
    except InputError as error:
        raise InputError(f"extractor.{error}") from error


def _name(name: str, out: Directory) -> str:
    """Of a training, under which its checkpoints lie."""
    return f"pretrain-{name}-{out.name}"


def scaling_factor(latents: Latents) -> tuple[float, float]:
    """1 / deviation of the latents (Rombach et al. 2022, appendix G), and that; read part by part."""
    count, total, squares, own = 0, 0.0, 0.0, 0.0
    for part in latents.parts():
        mean, logvar = (part[name].astype(np.float64) for name in ("mean", "logvar"))
        count, total, squares = count + mean.size, total + mean.sum(), squares + np.square(mean).sum()
        own += np.exp(logvar).sum()
    variance = squares / count - (total / count) ** 2 + own / count
    return round(float(variance**-0.5), 6), float(variance**0.5)
