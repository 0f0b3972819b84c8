"""Train a VAE, a DiT and a feature extractor φ on class folders, and write them as one model folder.

The folder is a diffusers pipeline with `extractor/` and a model card. A repeated call resumes.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import ray
import torch

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.cluster.resources import MEMORY_PER_ACTOR, Machine, is_present
from ims3_ray.cluster.train import Training, measure_part, train
from ims3_ray.config.pretrain import Pretrain, TrainSteps, TrainTransformer
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import CachedPixels, payloads
from ims3_ray.display import first_few, format_bytes
from ims3_ray.errors import InputError
from ims3_ray.models import classifiers
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.extractor import save_extractor
from ims3_ray.models.training import TrainingConfig
from ims3_ray.progress import print_line, timed
from ims3_ray.report.formatting import duration
from ims3_ray.report.inputs import History
from ims3_ray.storage.artifacts import Directory, complete, fingerprint, read_manifest
from ims3_ray.storage.checksums import content_hash
from ims3_ray.storage.integrity import read_or_reopen
from ims3_ray.storage.lease import exclusive

from .quality import CHECK_STEPS, Assessment, Quality, assess, model_card, write_page
from .rows import VIEWED_LATENTS, BlankRows, LatentEncoder, Latents, Views, scaling_factor, split_images
from .tasks import ExtractorTask, Models, Rows, TransformerTask, VaeTask

VERSION = 1  # raise it if a change of code alters the results
JUDGE_SEED = 1  # added to the seed of the classifier that labels samples
EMA_DECAY = 0.999
LEARNING_RATE = 1e-3  # of VAE and extractor
LOG_EVERY = 100  # steps
NUM_SCORES = 25  # on held-out images, per training
READ_BATCH = 256
HISTORY = "history.json"  # metrics
LABELS = {"judge": "extractor (judge)"}  # trainings that are not named as their section
FEW_IMAGES = 200  # per class; below, images are also shifted
SHIFT = 1 / 16  # of the side
PretrainTask = VaeTask | TransformerTask | ExtractorTask


class Pretraining:
    """All trainings. Each result has a fingerprint of its inputs and is reused by later calls."""

    def __init__(self, config: Pretrain, images: ImageSet, storage: Directory, machine: Machine):
        self.config, self.all_images, self.machine, self.storage = config, images, machine, storage
        self.images, self.held_out = split_images(config, images)
        counts = zip(images.classes, images.counts(), strict=True)
        self.few = [name for name, count in counts if count < FEW_IMAGES]
        views = Views(config.data.mirror, round(SHIFT * config.image_size) if self.few else 0)
        shared = [VERSION, config.seed, config.image_size, config.micro_batches, images.fingerprint]
        shared += [config.patience, asdict(views), machine.device]
        self.trainings: dict[str, tuple[type[PretrainTask], TrainSteps, int]] = {
            "vae": (VaeTask, config.vae, config.seed),
            "transformer": (TransformerTask, config.transformer, config.seed),
            "extractor": (ExtractorTask, config.extractor, config.seed),
            "judge": (ExtractorTask, config.extractor, config.seed + JUDGE_SEED),
        }
        dumps = {
            name: [shared, section.model_dump(mode="json"), self._steps(section), seed]
            for name, (_, section, seed) in self.trainings.items()
        }
        keys = {name: fingerprint(dump) for name, dump in dumps.items()}
        keys["latents"] = fingerprint([images.fingerprint, keys["vae"]])
        keys["transformer"] = fingerprint([dumps["transformer"], keys["vae"]])
        folders = {name: storage / "pretrain" / name / key for name, key in keys.items()}
        self.models = Models(config, len(images.classes), views, folders)

    def _steps(self, section: TrainSteps) -> int:
        return section.num_steps(self.config.epochs, len(self.images))

    def status(self, seconds: Mapping[str, float] | None = None) -> list[str]:
        """Returns a line per training and for the latents: complete, last checkpoint, or would run.

        With `seconds` per step, by training, also the time that is left.
        """
        folders, lines, total = self.models.folders, [], 0.0
        for name, (_, section, _) in self.trainings.items():
            files = (self.storage / "checkpoints" / _training_name(name, folders[name])).files()
            step = max([0, *(int(match[1]) for file in files if (match := re.match(r"step_(\d+)/", file)))])
            is_complete, steps = bool(read_manifest(folders[name])), self._steps(section)
            state = "complete" if is_complete else f"step {step:,}" if step else "would run"
            left = 0.0 if is_complete or not seconds else (steps - step) * seconds[name]
            time, total = f", about {duration(left)}" if left else "", total + left
            lines.append(_line(LABELS.get(name, name), state, f"{steps:,} steps{time}", folders[name].uri))
        state, size = "complete" if read_manifest(folders["latents"]) else "would run", len(self.all_images)
        lines.insert(1, _line("latents", state, f"{size:,} images", folders["latents"].uri))
        if seconds:
            number = self.config.check_images
            total += (left := number * seconds["check_images"])
            lines.append(_line("check_images", "would run", f"{number:,} samples, about {duration(left)}"))
            lines.append(
                f"  about {duration(total)} in total by the first steps here; trainings may stop earlier"
            )
        return lines

    def run(self, out: Path) -> tuple[dict[str, float], Quality | None]:
        """Trains, measures, and writes the model to `out`, a local path. Returns the card's metrics."""
        config = self.config
        self.check_memory()
        if self.few:
            few = f"{first_few(self.few)} have fewer than {FEW_IMAGES} images"
            print_line(f"warning: {few}; they are also shifted, and the generator may copy them")
        pixels = CachedPixels(self.images, config.image_size)
        unseen = CachedPixels(self.held_out, config.image_size) if self.held_out else None
        histories = {"vae": self._train("vae", pixels, unseen)}
        latents, unseen_latents = self._encode()
        factor, deviation = scaling_factor(latents)
        histories["transformer"] = self._train("transformer", latents, unseen_latents, scaling_factor=factor)
        for name in ("extractor", "judge"):
            histories[name] = self._train(name, pixels, unseen)
        metrics, assessment = {"scaling_factor": factor, "latent_deviation": deviation}, None
        if config.check_images:
            remote = ray.remote(**self.machine.actor_resources)(assess).remote
            with timed("quality"):
                assessment = ray.get(
                    remote(self.models, factor, self.images, self.held_out, self.machine.device)
                )
            metrics |= asdict(assessment.quality)
        self._write(out, factor, metrics, assessment, {n: h for n, h in histories.items() if n != "judge"})
        return metrics, assessment and assessment.quality

    def training(self, name: str, rows: Rows, held_out: Rows | None, **arguments: float) -> Training:
        task, section, seed = self.trainings[name]
        config, out, steps = self.config, self.models.folders[name], self._steps(section)
        every = max(1, steps // NUM_SCORES)
        batch = {"batch_size": section.batch_size, "micro_batches": config.micro_batches}
        data = {"models": self.models, "rows": rows, "held_out": held_out, "seed": seed}
        return Training(
            name=_training_name(name, out),
            build=task,
            arguments={**data, **batch, **arguments},
            optimisation=TrainingConfig(
                steps=steps,
                batch_size=section.batch_size,
                micro_batches=config.micro_batches,
                lr=section.lr if isinstance(section, TrainTransformer) else LEARNING_RATE,
                warmup_steps=min(100, steps // 10),
                decay="cosine",
                ema_decay=EMA_DECAY,
                log_every=min(LOG_EVERY, every),
                eval_every=every if held_out else 0,
                patience=0 if section.is_exact else config.patience,
                checkpoint_every=max(every, min(5 * every, 1000)),
            ),
            out=out,
            checkpoints=self.storage / "checkpoints",
            batch_field=f"{task.name}.batch_size",
        )

    def _train(self, name: str, rows: Rows, held_out: Rows | None, **arguments: float) -> History:
        """Trains unless the result is complete. Returns the metrics of each log step."""
        training = self.training(name, rows, held_out, **arguments)
        with exclusive(training.out):
            if read_or_reopen(training.out) is None:
                history = train(training, self.machine, LABELS.get(name, name))
                training.out.write_json(HISTORY, history)
                complete(training.out, {"stage": "pretrain", "fingerprint": training.out.name})
            return training.out.read_json(HISTORY)

    def _on_blank_rows(self, name: str) -> Training:
        factor = {"scaling_factor": 1.0} if name == "transformer" else {}
        return self.training(name, cast(Rows, BlankRows(self.models)), None, **factor)

    def step_seconds(self) -> dict[str, float]:
        """Returns seconds per step of each training, and per checked image, measured on a node's device.

        Returns nothing if there is no such device yet.
        """
        if not is_present(self.machine):
            return {}
        parts, device, seconds = self.config.micro_batches, self.machine.device, dict[str, float]()
        for name, (_, section, _) in self.trainings.items():
            measured = self._on_blank_rows(name), section.batch_size // parts, device
            if ray.is_initialized():
                remote = ray.remote(**self.machine.actor_resources)(measure_part).remote
                cost = ray.get(remote(*measured))
            else:
                cost = measure_part(*measured)
            seconds[name] = cost.seconds * -(-parts // self.machine.train_workers(parts))
            if name == "transformer":  # with guidance; a pass without gradients takes a third
                seconds["check_images"] = 2 * CHECK_STEPS * cost.seconds / measured[1] / 3
        return seconds

    def check_memory(self) -> None:
        """Raises InputError if a batch does not fit a CPU's memory; a GPU's own error names the field."""
        workers = self.machine.train_workers(self.config.micro_batches)
        room = self.machine.memory / workers - MEMORY_PER_ACTOR
        for name, (task, section, _) in self.trainings.items() if self.machine.device == "cpu" else ():
            found = measure_part(self._on_blank_rows(name), 2, "cpu")
            fitting = int((room - found.state_bytes) / found.image_bytes) * self.config.micro_batches
            if fitting < section.batch_size:
                raise InputError(
                    f"{task.name}.batch_size: a batch of {section.batch_size:,} needs more memory than the "
                    f"{format_bytes(self.machine.memory)} that {workers} workers have here; lower it to "
                    f"{max(fitting, 0):,} or less, or raise micro_batches"
                )

    def _encode(self) -> tuple[Latents, Latents | None]:
        """Encodes all images by the trained VAE, unless complete. Returns trained and held-out latents."""
        out, images = self.models.folders["latents"], self.all_images
        unseen = frozenset(self.held_out.ids if self.held_out else ())
        with exclusive(out):
            if read_or_reopen(out) is None:
                batches = payloads(images, range(len(images)), READ_BATCH)
                arguments = {"images": images.directory, "models": self.models}
                details = fan_out(
                    LatentEncoder,
                    arguments | {"device": self.machine.device, "batch_size": READ_BATCH},
                    [Part(i, len(payload["paths"]), payload) for i, payload in enumerate(batches)],
                    table=VIEWED_LATENTS,
                    out=out,
                    machine=self.machine,
                    stage="encode",
                )
                complete(out, details | {"stage": "encode", "fingerprint": out.name})
        return Latents(out, unseen), Latents(out, unseen, inverted=False) if unseen else None

    def _write(
        self,
        out: Path,
        factor: float,
        metrics: Mapping[str, float],
        assessment: Assessment | None,
        histories: Mapping[str, History],
    ) -> None:
        vae, classes = self.models.trained_vae(factor, torch.device("cpu")).model, list(self.images.classes)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            folder = Path(temporary) / out.name
            dit = self.models.trained_transformer()
            save_pipeline(dit, vae, folder, id2label=classes, dtype=torch.float16)
            half = (0.5, 0.5, 0.5)
            classifier = self.models.trained_classifier("extractor")
            save_extractor(classifier, folder / "extractor", mean=half, deviation=half)
            claim = assessment and assessment.quality.claim()
            card = model_card(self.config, self.all_images, metrics, claim)
            (folder / "README.md").write_text(card, encoding="utf-8")
            if assessment:
                write_page(assessment, histories, folder)
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
    """Raises InputError if the extractor's network is too deep for the image size or has batch norm."""
    try:
        network = classifiers.build(config.extractor.network, num_classes, config.image_size, None, width=1)
    except InputError as error:
        raise InputError(f"extractor.{error}") from error
    if list(network.buffers()):
        raise InputError(
            f"extractor.network: {config.extractor.network} has running statistics, and only parameters are "
            "averaged and saved; set a network without batch norm, such as convnet3"
        )


def _line(name: str, state: str, work: str, place: str = "") -> str:
    return f"  {name:<19}{state:<12} of {work}   {place}".rstrip()


def _training_name(name: str, out: Directory) -> str:
    """The training's name, also of its folder of checkpoints."""
    return f"pretrain-{name}-{out.name}"
